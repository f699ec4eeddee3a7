"""A trainer with steps that are no numbers; as a program what test_bad_steps.py runs on two ranks.

python broken.py MODEL OUT.json FAULT
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.base import exits
from orpo_dist.base.console import quieten_libraries, set_up_logging
from orpo_dist.base.types import PairScores
from orpo_dist.engines import runtime
from orpo_dist.runs.folder import read_metrics
from tests.conftest import DEMO

PAIRS = 24  # three steps an epoch


class Broken(ORPOTrainer):
    """``culprits`` are no numbers: their scores, their loss alone, or their gradient alone."""

    culprits: tuple[int, ...] = (13,)
    fault = "scores"
    first = 1  # the first step that has them
    _at_fault: list[int]

    def micro_batch_loss(self, model: Any, step: Any, number: int) -> Tensor:
        pairs = step.pairs[number]
        broken = self.state.global_step + 1 >= self.first
        self._at_fault = [at for at, pair in enumerate(pairs) if pair in self.culprits and broken]
        return super().micro_batch_loss(model, step, number)

    def score(self, model: Any, batch: Any) -> PairScores:
        scores = super().score(model, batch)
        if self.fault != "loss" and self._at_fault and torch.is_grad_enabled():
            bad = torch.zeros_like(scores.chosen_logp, dtype=torch.bool)
            bad[self._at_fault] = True
            if self.fault == "scores":
                broken = scores.chosen_logp.masked_fill(bad, float("nan"))
                return dataclasses.replace(scores, chosen_logp=broken)
            scores.chosen_logp.register_hook(lambda grad: grad.masked_fill(bad, float("inf")))
        return scores

    def compute_objective(self, scores: PairScores, step: Any) -> Any:
        share, metrics = super().compute_objective(scores, step)
        if self.fault == "loss" and self._at_fault and torch.is_grad_enabled():
            share = share + float("inf")  # its own gradient is finite
        return share, metrics


def steps(model: str, folder: Path, fault: str, **changes: Any) -> dict[str, Any]:
    """Train five steps; curves, what was skipped, and the count on this rank."""
    lines = (DEMO / "train.jsonl").read_text(encoding="utf-8").splitlines()[:PAIRS]
    values = {
        "project_name": str(folder), "max_steps": 5, "global_batch_size": 8, "batch_size": 1,
        "lr": 1e-2, "logging_steps": 1, "save_strategy": "no", "log": "none",
        "max_tokens_per_microbatch": 500,
    }  # fmt: skip
    config = ORPOConfig(**{**values, **changes})
    trainer = Broken(model, config, [json.loads(line) for line in lines])
    trainer.fault = fault
    file = Path(f"{folder}-bad.jsonl")
    trainer.bad_steps.keep_in(file, None, 0)
    trainer.train()
    log = {entry["step"]: entry for entry in trainer.state.log_history if "learning_rate" in entry}
    return {
        "loss": [entry.get("loss") for entry in log.values()],
        "norm": [entry.get("grad_norm") for entry in log.values()],
        "rate": [entry["learning_rate"] for entry in log.values()],
        "skipped": read_metrics(file),
        "counts": trainer.runtime.sum(torch.tensor([trainer.bad_steps.total]).numpy()).tolist(),
    }


def main(model: str, out: str, fault: str) -> None:
    set_up_logging()
    quieten_libraries()
    found = steps(model, Path(f"{out}-run"), fault)
    if runtime.start().is_main:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    runtime.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exits.leave(0)
