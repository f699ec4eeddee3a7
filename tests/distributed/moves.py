"""What ``launching.in_one_launch`` runs on every rank: runs that begin, or go on from others.

    python moves.py JOBS.json

JOBS: settings of one run after another, in one process group. Each rank notes in its run's folder,
in pairs-RANK.jsonl, which pairs every step has trained on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from orpo_dist import ORPOConfig, ORPOTrainer, train
from orpo_dist.base import exits
from orpo_dist.base.console import set_up_logging
from orpo_dist.engines import runtime
from orpo_dist.upstream.accelerate import forget_engine


class Noting(ORPOTrainer):
    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        found = [int(pair) for batch in inputs.pairs for pair in batch if pair >= 0]
        note = {"step": self.state.global_step + 1, "pairs": found}
        path = Path(self.config.project_name) / f"pairs-{self.args.process_index}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
        return super().training_step(model, inputs, num_items_in_batch)


def main(jobs: str) -> None:
    set_up_logging()
    for settings in json.loads(Path(jobs).read_text(encoding="utf-8")):
        train(ORPOConfig(**settings), trainer_class=Noting)
        forget_engine()
    runtime.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exits.leave(0)
