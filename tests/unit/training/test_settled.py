"""What a stage decides is decided once, and lies in its folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import ORPOConfig, train
from orpo_dist.data.encode import Encoder
from orpo_dist.training import arguments, settled
from tests.conftest import DEMO


def run(model: Path, folder: Path, **more: Any) -> dict[str, Any]:
    config = ORPOConfig(
        model=str(model), data_path=[str(DEMO / "train.jsonl")], project_name=str(folder),
        valid_data_path=[str(DEMO / "eval.jsonl")], max_steps=1, batch_size=2, log="none",
        gradient_accumulation=2, max_completion_length=40, **more,
    )  # fmt: skip
    train(config)
    found: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return found


def test_decided_once(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    resolve, began = arguments.resolve, Encoder.__init__

    def counted(*args: Any, **kwargs: Any) -> ORPOConfig:
        seen["resolve"] += 1
        return resolve(*args, **kwargs)

    def begin(self: Encoder, *args: Any, **kwargs: Any) -> None:
        seen["encoder"] += 1
        began(self, *args, **kwargs)

    monkeypatch.setattr(settled, "resolve", counted)
    monkeypatch.setattr(Encoder, "__init__", begin)
    run(tiny_model_dir, tmp_path)
    assert seen["resolve"] == 1
    assert seen["encoder"] == 2  # and that of the handle which answers afterwards


def test_lies_in_the_run_folder(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = run(tiny_model_dir, tmp_path, max_prompt_length=30)["settled"]
    assert found["engine"] == "single"
    assert (found["pairs_per_step"], found["gradient_accumulation"], found["steps"]) == (4, 2, 1)
    assert found["tokens_per_microbatch"] == 512  # auto, on a CPU
    assert found["attention"] == "packed"
    assert (found["max_prompt_length"], found["max_completion_length"]) == (30, 40)
    assert found["eval_strategy"] == "epoch"


def test_every_stage_has_what_was_settled_for_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    stages = [{"max_steps": 1}, {"max_steps": 1, "max_completion_length": 20}]
    found = run(tiny_model_dir, tmp_path, stages=stages)["settled"]
    longest = {name: facts["max_completion_length"] for name, facts in found.items()}
    assert longest == {"stage 1": 40, "stage 2": 20}
