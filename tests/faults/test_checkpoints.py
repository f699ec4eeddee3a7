"""What a run goes on from: not deleted, not half, not of another branch, not silently less."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from orpo_dist import ORPOTrainer, UserError, train
from orpo_dist.engines.interruption import Interrupted
from orpo_dist.runs.changes import SETTINGS
from orpo_dist.runs.folder import newest_checkpoint, read_json, read_metrics
from orpo_dist.runs.lineage import checkpoints
from orpo_dist.runs.manifest import MANIFEST, damage, facts_of
from tests.conftest import DEMO
from tests.faults.test_resume import curve
from tests.unit.runs.test_manifest import flip
from tests.unit.training.test_run import settings

# The second evaluation is worse than the first, the third a little better than both.
WORSE: dict[str, Any] = {
    "max_steps": 12, "lr": 0.05, "scheduler": "constant", "warmup_ratio": 0, "save_total_limit": 1,
    "eval_strategy": "steps", "eval_steps": 2, "valid_data_path": str(DEMO / "eval.jsonl"),
}  # fmt: skip
PATIENCE: dict[str, Any] = {
    **WORSE, "early_stopping_patience": 2, "early_stopping_threshold": 0.5,
}  # fmt: skip
BEST: dict[str, Any] = {**WORSE, "max_steps": 5, "load_best_model_at_end": True}


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


def steps_of(folder: Path) -> list[int]:
    return [entry["step"] for entry in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def patient(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that early stopping ended, uninterrupted."""
    folder = tmp_path_factory.mktemp("patient") / "whole"
    train(settings(tiny_model_dir, folder, **PATIENCE))
    assert list(evaluations(folder)) == [2, 4, 6]  # it did stop
    return folder


@pytest.mark.parametrize("steps", [(3,), (2, 4)])
def test_patience_is_that_of_the_uninterrupted_run(
    steps: tuple[int, ...], patient: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """With a limit of one checkpoint: a stop once deleted its own, as it was not the best."""
    config = settings(tiny_model_dir, tmp_path, **PATIENCE, resume_from_checkpoint="auto")
    for step in steps:
        with pytest.raises(Interrupted, match=f"stopped at step {step} "):
            train(config, callbacks=[Stop(step)])
        newest = newest_checkpoint(tmp_path)
        assert newest is not None and newest.name == f"checkpoint-{step}"
    train(config)
    assert evaluations(tmp_path) == pytest.approx(evaluations(patient), abs=1e-6)
    assert same_weights(tmp_path, patient)


def test_killed_after_patience_was_lost_it_makes_no_more_steps(
    patient: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(patient, cut)
    (cut / "model.safetensors").unlink()
    train(settings(tiny_model_dir, cut, **PATIENCE, resume_from_checkpoint="auto"))
    assert steps_of(cut) == steps_of(patient)
    assert same_weights(cut, patient)


@pytest.fixture(scope="module")
def best(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best model is not its last."""
    folder = tmp_path_factory.mktemp("best") / "whole"
    train(settings(tiny_model_dir, folder, **BEST))
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2", "checkpoint-5"]
    assert same_weights(folder, folder / "checkpoint-2")
    return folder


@pytest.mark.parametrize("gone", [False, True])
def test_the_best_model_of_a_run_that_was_moved(
    gone: bool, best: Path, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(best, moved)
    (moved / "model.safetensors").unlink()
    if gone:
        shutil.rmtree(moved / "checkpoint-2")
    hidden = best.rename(best.with_name("away"))
    try:
        with caplog.at_level(logging.WARNING, "orpo_dist"):
            handle = train(settings(tiny_model_dir, moved, **BEST, resume_from_checkpoint="auto"))
    finally:
        hidden.rename(best)
    said = [line for line in caplog.messages if "the best model so far cannot be restored" in line]
    assert bool(said) is gone
    assert same_weights(moved, moved / "checkpoint-5" if gone else best)
    first = evaluations(best)[2]  # figures go with the weights
    assert (handle.metrics["eval/loss"] == pytest.approx(first, abs=1e-6)) is not gone


OPTIMIZER = ("optimizer/state.json", "optimizer/rank-00000-part-000.safetensors")
STEPS: dict[str, Any] = {
    "max_steps": 8, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None,
}  # fmt: skip


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
    assert read_json(checkpoint / SETTINGS)["resolved"]["lr"] == 1e-2
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert {"model.safetensors", "rng_state.pth", *OPTIMIZER} <= set(files)
    assert not (whole / ".saving").exists()


@pytest.mark.parametrize("name", [*OPTIMIZER, "rng_state.pth", MANIFEST])
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
    changed = "(is no JSON|was changed)" if name == MANIFEST else "was changed"
    assert re.search(f"checkpoint-6: its {name} {changed}", said)
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


@pytest.mark.parametrize(
    ("harm", "said"),
    [(lambda folder: (folder / OPTIMIZER[0]).unlink(), "its optimizer/state.json is missing"),
     (shutil.rmtree, "is not there")],
)  # fmt: skip
def test_the_trainer_alone_refuses_what_is_not_whole(
    harm: Callable[[Path], None], said: str, whole: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Whoever calls it from a script of their own, without ``train``."""
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    harm(cut / "checkpoint-6")
    config = settings(tiny_model_dir, cut, **STEPS)
    rows = [json.loads(line) for line in (DEMO / "train.jsonl").read_text().splitlines()[:24]]
    trainer = ORPOTrainer(str(tiny_model_dir), config, rows)
    with pytest.raises(UserError, match=said):
        trainer.train(resume_from_checkpoint=str(cut / "checkpoint-6"))
    assert trainer.state.global_step == 0


def test_a_model_beside_damaged_checkpoints_is_not_replaced(
    whole: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for checkpoint in checkpoints(cut):
        (checkpoint / MANIFEST).unlink()
    with pytest.raises(UserError, match="holds a model, and no whole checkpoint to go on from"):
        train(settings(tiny_model_dir, cut, **STEPS, resume_from_checkpoint="auto"))
    assert (cut / "model.safetensors").exists()
