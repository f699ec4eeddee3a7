"""What a run goes on from: not deleted, not half, not of another branch, not silently less."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from orpo_dist import UserError, train
from orpo_dist.folder import newest_checkpoint, read_metrics
from orpo_dist.interruption import Interrupted
from orpo_dist.lineage import checkpoints
from orpo_dist.manifest import MANIFEST, damage, facts_of
from tests.conftest import DEMO
from tests.faults.test_resume import curve
from tests.unit.test_manifest import flip
from tests.unit.test_run import settings

# Evaluations that soon get worse: a rate far too high, and a small held-out set.
WORSE: dict[str, Any] = {
    "max_steps": 12, "lr": 0.5, "scheduler": "constant", "warmup_ratio": 0,
    "eval_strategy": "steps", "eval_steps": 2, "valid_data_path": str(DEMO / "eval.jsonl"),
}  # fmt: skip


class Stop(TrainerCallback):
    """Sends this process a signal at a step, as a scheduler or a person would."""

    def __init__(self, *steps: int):
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 in self.steps:
            os.kill(os.getpid(), signal.SIGTERM)


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def evaluations(folder: Path) -> dict[int, float]:
    log = read_metrics(folder / "metrics.jsonl")
    return {entry["step"]: entry["eval/loss"] for entry in log if "eval/loss" in entry}


@pytest.fixture(scope="module")
def patient(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that early stopping ended, uninterrupted."""
    folder = tmp_path_factory.mktemp("patient") / "whole"
    train(settings(tiny_model_dir, folder, **WORSE, early_stopping_patience=2, save_total_limit=1))
    assert max(evaluations(folder)) < WORSE["max_steps"], "it did not stop"
    return folder


@pytest.mark.parametrize("steps", [(5,), (2, 4)])
def test_stopped_and_resumed_patience_and_the_best_model_are_the_uninterrupted_run_s(
    steps: tuple[int, ...], patient: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """With a limit of one checkpoint, which a stop once deleted beside the best."""
    config = settings(
        tiny_model_dir, tmp_path / "cut", **WORSE, early_stopping_patience=2, save_total_limit=1,
        resume_from_checkpoint="auto",
    )  # fmt: skip
    for step in steps:
        if step < max(evaluations(patient)):
            with pytest.raises(Interrupted, match=f"stopped at step {step} "):
                train(config, callbacks=[Stop(step)])
            newest = newest_checkpoint(tmp_path / "cut")
            assert newest is not None and newest.name == f"checkpoint-{step}"
    train(config)
    assert evaluations(tmp_path / "cut") == pytest.approx(evaluations(patient), abs=1e-6)
    assert same_weights(tmp_path / "cut", patient)


def test_killed_after_patience_was_lost_it_makes_no_more_steps(
    patient: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "moved"  # and moved: the best model is found where the run lies now
    shutil.copytree(patient, cut)
    (cut / "model.safetensors").unlink()
    shutil.move(patient, hidden := patient.with_name("away"))
    try:
        config = settings(
            tiny_model_dir, cut, **WORSE, early_stopping_patience=2, save_total_limit=1
        )
        train(config.replace(resume_from_checkpoint="auto"))
    finally:
        shutil.move(hidden, patient)
    assert evaluations(cut) == evaluations(patient)
    assert same_weights(cut, patient)


def test_a_best_model_that_is_gone_is_looked_for_anew_and_said(
    patient: Path, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(patient, cut)
    (cut / "model.safetensors").unlink()
    oldest, newest = checkpoints(cut)
    shutil.rmtree(oldest)
    shutil.move(patient, hidden := patient.with_name("away"))
    try:
        config = settings(tiny_model_dir, cut, **WORSE, early_stopping_patience=9)
        with caplog.at_level(logging.WARNING, "orpo_dist"):
            handle = train(config.replace(resume_from_checkpoint="auto"))
    finally:
        shutil.move(hidden, patient)
    assert any("the best model so far cannot be restored" in said for said in caplog.messages)
    later = {k: v for k, v in evaluations(cut).items() if k > int(newest.name.split("-")[1])}
    assert handle.metrics["eval/loss"] == pytest.approx(min(later.values()), abs=1e-6)


STEPS: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(settings(tiny_model_dir, folder, **STEPS))
    return folder


def test_a_manifest_says_what_was_written_where_and_by_whom(whole: Path) -> None:
    checkpoint = whole / "checkpoint-6"
    facts = facts_of(checkpoint)
    assert (facts["step"], facts["engine"], facts["world_size"]) == (6, "single", 1)
    assert facts["plan"]["pairs_of_epoch"] == 24
    assert facts["settings"]["lr"] == 1e-2
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(files)
    assert not (whole / ".saving").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", MANIFEST])
def test_a_damaged_checkpoint_falls_back_to_the_whole_one_beside_it(
    name: str, whole: Path, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    (cut / "model.safetensors").unlink()
    (cut / "checkpoint-8" / name).unlink()
    flip(cut / "checkpoint-6" / name)
    config = settings(tiny_model_dir, cut, **STEPS, resume_from_checkpoint="auto")
    with caplog.at_level(logging.WARNING, "orpo_dist"):
        train(config)
    said = next(said for said in caplog.messages if said.startswith("passed over"))
    assert f"checkpoint-8: its {name} is missing" in said
    assert f"checkpoint-6: its {name} was changed" in said
    assert curve(cut) == pytest.approx(curve(whole), abs=1e-6)
    assert same_weights(cut, whole)
    found = checkpoints(cut)
    assert [path.name for path in found] == [path.name for path in checkpoints(whole)]
    assert all(damage(path) is None for path in found)
    with pytest.raises(UserError, match=f"is not a complete checkpoint: its {name} ") as caught:
        damaged = str(cut / "set-aside" / "checkpoint-8")
        train(config.replace(resume_from_checkpoint=damaged))
    assert "\n" not in str(caught.value)


def test_going_back_sets_later_checkpoints_aside(
    whole: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Killed before the new branch saves anything: ``auto`` takes none of the old one."""
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    back = settings(tiny_model_dir, cut, **{**STEPS, "save_steps": 5}, lr=3e-3)
    back = back.replace(resume_from_checkpoint=str(cut / "checkpoint-4"))

    class Killed(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(back, callbacks=[Killed()])
    assert [path.name for path in checkpoints(cut)] == ["checkpoint-2", "checkpoint-4"]
    assert sorted(p.name for p in (cut / "set-aside").iterdir()) == ["checkpoint-6", "checkpoint-8"]


def test_weights_alone_are_not_resumed_from(
    whole: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model_dir, tmp_path, **STEPS, trainer_args={"save_only_model": True})
    train(config)
    for wanted in ("auto", str(tmp_path / "checkpoint-4")):
        with pytest.raises(UserError, match="saved with save_only_model, without the optimizer"):
            train(config.replace(resume_from_checkpoint=wanted, max_steps=12))
