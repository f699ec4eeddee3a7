"""Steps whose loss or gradient is no finite number: skipped, counted, named, and not for ever."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_dist import ORPOConfig, UserError, train
from orpo_dist.base.types import PairScores
from orpo_dist.engines.runtime import ALONE
from orpo_dist.runs.folder import read_json, read_metrics
from orpo_dist.training.bad_steps import BadSteps, Suspects, poisoned, suspects_of_all
from tests.conftest import DEMO
from tests.distributed.broken import Broken, steps
from tests.unit.training.test_run import settings


def test_a_finite_loss_keeps_every_bit_and_another_poisons_the_gradient() -> None:
    weight = torch.tensor([0.1, 3.7], requires_grad=True)
    share = (weight * torch.tensor([1 / 3, -7e-9])).sum()
    (plain,) = torch.autograd.grad(share, weight, retain_graph=True)
    (same,) = torch.autograd.grad(poisoned(share), weight, retain_graph=True)
    assert torch.equal(plain, same) and torch.equal(poisoned(share), share)
    for bad in (float("inf"), float("-inf"), float("nan")):
        (gone,) = torch.autograd.grad(poisoned(share + bad), weight, retain_graph=True)
        assert gone.isnan().all()


def scores_of(*logps: float) -> PairScores:
    each = torch.tensor(logps)
    return PairScores(each, torch.zeros_like(each), *(torch.ones_like(each),) * 3)


def test_suspects_are_as_few_as_can_be_told() -> None:
    nan, seen = float("nan"), Suspects()
    assert seen.found() == (False, [])
    seen.add((4, 9), torch.tensor(1.0), scores_of(-1, -2))
    seen.add((-1,), torch.tensor(0.0), scores_of(-1))
    assert seen.found() == (False, [4, 9])  # the gradient, then: any of them
    seen.add((7, 2), torch.tensor(nan), scores_of(-1, -2))
    assert seen.found() == (True, [2, 7])
    seen.add((5, 6), torch.tensor(nan), scores_of(-1, nan))
    assert seen.found() == (True, [6])


def test_a_pair_of_a_shared_sequence_is_named_once() -> None:
    assert suspects_of_all((True, [3, 1, 3]), ALONE) == (True, [1, 3])


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize("fault", ["scores", "loss", "gradient"])
def test_a_bad_step_changes_nothing_but_the_count(
    fault: str, attention: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Weights and both moments of Adam; with clipping and without."""
    seen: list[list[torch.Tensor]] = []

    def note(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        optimizer = more["optimizer"]
        kept = [p.detach().clone() for p in more["model"].parameters()]
        for entries in optimizer.state.values():
            kept += [value.clone() for value in entries.values()]
        seen.append(kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BadSteps, "on_pre_optimizer_step", note, raising=False)
        patch.setattr(BadSteps, "on_optimizer_step", note, raising=False)
        found = steps(
            str(tiny_model_dir), tmp_path / "run", fault, attention=attention,
            max_grad_norm=1.0 if fault == "scores" else 0.0,
        )  # fmt: skip
    (skipped,) = found["skipped"]
    assert skipped["step"] > 1  # so that there are moments
    for step in range(1, 6):
        before, after = seen[2 * step - 2 : 2 * step]
        same = len(before) == len(after) and all(map(torch.equal, before, after))
        assert same == (step in (1, skipped["step"])) or step == 1
    assert all(tensor.isfinite().all() for tensor in seen[-1])
    at = skipped["step"] - 1
    assert found["loss"][at] is None and found["norm"][at] is None
    assert all(n is not None and math.isfinite(n) for n in found["loss"][at + 1 :])
    assert len(set(found["rate"])) == 5  # the schedule goes on


def run_settings(model: Path, folder: Path, **changes: Any) -> ORPOConfig:
    return settings(model, folder, **{"max_steps": 6, "save_strategy": "no", **changes})


def test_a_run_says_where_the_row_is(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By file and row, although rows before it were left out; one log line covers two steps."""
    lines = (DEMO / "train.jsonl").read_text().splitlines()[:24]
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(["{}", lines[0], "{}", *lines[1:]]) + "\n")
    with caplog.at_level(logging.WARNING, "orpo_dist"):
        train(
            run_settings(tiny_model_dir, tmp_path / "run", data_path=str(data), logging_steps=2),
            trainer_class=Broken,
        )
    (entry,) = read_metrics(tmp_path / "run" / "bad_steps.jsonl")
    assert entry["rows"] == [f"{data}:16"] and entry["pairs"] == [13]
    assert json.loads(data.read_text().splitlines()[15]) == json.loads(lines[13])
    assert sum(f"look at {data}:16" in line for line in caplog.messages) == 1
    assert read_json(tmp_path / "run" / "run.json")["skipped_steps"] == 1
    log = read_metrics(tmp_path / "run" / "metrics.jsonl")
    counts = [line.get("skipped_steps", 0) for line in log if "learning_rate" in line]
    assert counts == sorted(counts) and counts[-1] == 1
    assert all(line["loss"] == pytest.approx(line["loss/orpo"]) for line in log if "loss" in line)


@pytest.mark.parametrize(("limit", "last"), [(0, 4), (2, 6)])
def test_too_many_in_a_row_end_the_run_and_leave_the_last_good_checkpoint(
    limit: int, last: int, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "culprits", tuple(range(200)))
    monkeypatch.setattr(Broken, "first", 4)
    config = run_settings(
        tiny_model_dir, tmp_path, max_steps=20, max_bad_steps=limit, save_strategy="steps",
        save_steps=1, save_total_limit=1,
    )  # fmt: skip
    with pytest.raises(UserError) as caught:
        train(config, trainer_class=Broken)
    said, steps = str(caught.value), "step 4:" if limit == 0 else "steps 4 to 6:"
    assert said.startswith(steps) and f"max_bad_steps is {limit}" in said and "\n" not in said
    assert str(tmp_path / "checkpoint-3") in said
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["skipped_steps"]) == ("failed", last - 3)
    monkeypatch.setattr(Broken, "culprits", ())
    train(config.replace(resume_from_checkpoint="auto", max_steps=8), trainer_class=Broken)
    assert read_json(tmp_path / "run.json")["skipped_steps"] == 0  # they were made after all
    assert not read_metrics(tmp_path / "bad_steps.jsonl")


@pytest.mark.parametrize(("fault", "bad"), [("gradient", 2), ("scores", 4)])
def test_overflow_under_loss_scaling_is_no_bad_step_until_the_scale_is_used_up(
    fault: str, bad: int, tiny_model_dir: Path, tmp_path: Path, demo_rows: Any
) -> None:
    """torch's own scaler, as for fp16 on a GPU: 4, 2, 1, 0.5; a loss is never its doing."""
    config = run_settings(tiny_model_dir, tmp_path, max_steps=4)
    trainer = Broken(str(tiny_model_dir), config, demo_rows[:24])
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.fault, trainer.culprits = fault, tuple(range(24))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert trainer.bad_steps.total == bad
    assert all(map(torch.equal, trainer.model.parameters(), before))
    assert trainer.accelerator.scaler.get_scale() == 0.25
