"""What test_gradients.py runs on two ranks: four steps that note where their gradients lie.

    python gradients.py MODEL OUT.json SHARE:BATCH_SIZE ...

One training after another; SHARE: in place of ``engines.WHOLE_GRADIENTS``. Writes of each losses
and gradient norms of the steps; the numbers in gradients before every micro-batch; whether
gradients share storages when they are used.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.base import exits
from orpo_dist.base.console import quieten_libraries, set_up_logging
from orpo_dist.engines import engine as engines
from orpo_dist.engines import runtime
from orpo_dist.upstream.accelerate import forget_engine
from tests.conftest import DEMO


def gradients() -> Iterator[torch.Tensor]:
    """Of all tensors that exist, FSDP2's own among them; every storage once."""
    seen = set()
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.is_leaf and thing.grad is not None:
            grad: Any = thing.grad
            grad = grad.to_local() if hasattr(grad, "to_local") else grad
            place = grad.untyped_storage().data_ptr()
            if place not in seen:
                yield grad
            seen.add(place)


class Watching(ORPOTrainer):
    def score(self, model: Any, batch: Any) -> Any:
        self.held.append(sum(grad.untyped_storage().nbytes() // 4 for grad in gradients()))
        return super().score(model, batch)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        self.held: list[int] = []
        self.storages: list[int] = []
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.register_step_pre_hook(
            lambda *_: self.storages.append(sum(1 for _ in gradients()))
        )
        return optimizer


def main(model: str, out: str, *cases: str) -> None:
    set_up_logging()
    quieten_libraries()
    found = []
    for case in cases:
        found.append(trained(model, out, *case.split(":")))
        gc.collect()  # what this one held is not the next one's
        forget_engine()
    if runtime.start().is_main:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    runtime.leave()


def trained(model: str, out: str, share: str, batch_size: str) -> dict[str, list[Any]]:
    engines.WHOLE_GRADIENTS = float(share)
    lines = (DEMO / "train.jsonl").read_text(encoding="utf-8").splitlines()[:21]
    config = ORPOConfig(
        project_name=out + "-run", max_steps=4, global_batch_size=8, batch_size=int(batch_size),
        lr=1e-3, logging_steps=1, save_strategy="no", log="none",
        max_tokens_per_microbatch=None,
    )  # fmt: skip
    trainer = Watching(model, config, [json.loads(line) for line in lines])
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "loss": [e["loss/orpo"] for e in log], "norm": [float(e["grad_norm"]) for e in log],
        "held": trainer.held, "storages": trainer.storages,
        "trains": [p.numel() for p in trainer.model.parameters()],
    }  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
    exits.leave(0)
