"""A run that goes on with another rate trains with it; one that goes on with its own, as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_dist.training.engine_trainer import set_rates
from tests.launching import curve, launched, run, training


def test_the_rate_is_that_of_the_config_and_not_of_the_checkpoint(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    from orpo_dist import ORPOConfig, train
    from tests.conftest import DEMO

    def rates(folder: str, **more: Any) -> dict[int, float]:
        settings: dict[str, Any] = {
            "model": str(tiny_model_dir), "data_path": [str(DEMO / "train.jsonl")],
            "project_name": str(tmp_path / folder), "global_batch_size": 8, "batch_size": 4,
            "warmup_ratio": 0.0, "scheduler": "linear", "save_strategy": "steps", "save_steps": 4,
            "logging_steps": 1, "log": "none", "max_steps": 8, **more,
        }  # fmt: skip
        train(ORPOConfig(**settings))
        return curve(tmp_path / folder, "learning_rate")

    first = rates("first", lr=1e-3)
    checkpoint = str(tmp_path / "first" / "checkpoint-4")
    other = rates("other", lr=5e-4, resume_from_checkpoint=checkpoint)
    same = rates("same", lr=1e-3, resume_from_checkpoint=checkpoint)
    for step in (5, 6, 7, 8):
        assert same[step] == first[step]
        assert other[step] == pytest.approx(first[step] / 2)


def test_every_group_keeps_its_share_of_the_schedule() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": [p], "lr": 1.0, "weight_decay": 0.1 * i} for i, p in enumerate(parameters)]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    schedule.step()
    set_rates(optimizer, schedule, [(2.0, 0.0), (4.0, 0.5)])
    assert [g["lr"] for g in optimizer.param_groups] == schedule.get_last_lr() == [1.0, 2.0]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.5]
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([2 / 3, 4 / 3])


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["ddp", "zero1", "zero3", "fsdp2"])
def test_the_rate_is_the_config_s_on_every_engine(
    tiny_model_dir: Path, tmp_path: Path, preset: str
) -> None:
    constant = ("--scheduler", "constant", "--warmup-ratio", "0", "--save-strategy", "steps",
                "--save-steps", "2")  # fmt: skip
    run(launched(preset) + training(tiny_model_dir, tmp_path, "--max-steps", "2", *constant))
    more = ("--max-steps", "4", "--lr", "5e-4", "--resume-from-checkpoint", "auto")
    run(launched(preset) + training(tiny_model_dir, tmp_path, *constant, *more))
    assert curve(tmp_path, "learning_rate") == pytest.approx({1: 1e-3, 2: 1e-3, 3: 5e-4, 4: 5e-4})
