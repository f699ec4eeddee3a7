"""What test_layers.py runs on two ranks: the same two steps, with layers in several forms.

    python layers.py MODEL OUT.json JSON ...

JSON: settings of one training. Writes of each losses and gradient norms, what has computed the
layers, and the names of the saved weights.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.base import exits
from orpo_dist.base.console import quieten_libraries, set_up_logging
from orpo_dist.engines import runtime
from orpo_dist.models import kernels
from orpo_dist.upstream.accelerate import forget_engine
from tests.conftest import DEMO


def main(model: str, out: str, *cases: str) -> None:
    set_up_logging()
    quieten_libraries()
    # Graphs as they are, without minutes of a C++ compiler.
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    found = []
    for number, case in enumerate(cases):
        found.append(trained(model, f"{out}-{number}", json.loads(case)))
        gc.collect()
        forget_engine()
    if runtime.start().is_main:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    runtime.leave()


def trained(model: str, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    lines = (DEMO / "train.jsonl").read_text(encoding="utf-8").splitlines()[:16]
    config = ORPOConfig(
        project_name=folder, max_steps=3, global_batch_size=4, batch_size=2, lr=1e-3,
        logging_steps=1, save_strategy="no", log="none", max_tokens_per_microbatch=None, **settings,
    )  # fmt: skip
    trainer = ORPOTrainer(model, config, [json.loads(line) for line in lines])
    used = []
    settle = kernels.compile_layers

    def noted(*args: Any) -> None:
        used.append("compile")
        settle(*args)

    kernels.compile_layers = noted
    trainer.train()
    kernels.compile_layers = settle
    trainer.save_model(folder)
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    names = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names += list(file.keys())
    return {
        "loss": [entry["loss"] for entry in history],
        "norm": [entry["grad_norm"] for entry in history],
        "used": used,
        "names": names,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
    exits.leave(0)
