"""A checkpoint goes to the disk beside training, and counts from when it is there."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from orpo_dist import UserError, train
from orpo_dist.checkpoints import elastic
from orpo_dist.checkpoints.pieces import Unwritten
from orpo_dist.runs.lineage import SAVING, checkpoints
from orpo_dist.runs.manifest import damage, fingerprints
from orpo_dist.training import engine_trainer, saving_trainer
from orpo_dist.training.engine_trainer import EngineTrainer
from tests.unit.training.test_run import settings

STEPS: dict[str, Any] = {
    "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1,
}  # fmt: skip


class SlowDisk:
    """Files reach it when ``there`` is set; or never, with ``error``."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.error: OSError | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.there.wait(60)
        if self.error:
            raise self.error
        return fingerprints(*args, **kwargs)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    slow, write = SlowDisk(), Unwritten.write

    def late(file: Unwritten) -> Path:
        assert slow.there.wait(60)
        return write(file)

    monkeypatch.setattr("orpo_dist.checkpoints.saving.fingerprints", slow)
    monkeypatch.setattr(Unwritten, "write", late)
    monkeypatch.setattr(saving_trainer, "WORTH_A_THREAD", 0)
    return slow


class AtStep(TrainerCallback):
    """Notes the checkpoints that are there when a step begins; the disk is ready at one of them."""

    def __init__(self, folder: Path, disk: SlowDisk, ready: int):
        self.folder, self.disk, self.ready = folder, disk, ready
        self.seen: dict[int, list[str]] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step + 1
        self.seen[step] = [path.name for path in checkpoints(self.folder)]
        if step >= self.ready:
            self.disk.there.set()


def test_training_goes_on_while_a_checkpoint_goes_to_the_disk(
    disk: SlowDisk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Step 3 begins without it; it is in its place before the next one is written."""
    watch = AtStep(tmp_path, disk, ready=4)
    train(settings(tiny_model_dir, tmp_path, **STEPS), callbacks=[watch])
    assert watch.seen[3] == watch.seen[4] == []
    assert watch.seen[6] in (["checkpoint-2"], ["checkpoint-4"])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6"]
    assert damage(tmp_path / "checkpoint-6") is None
    assert not (tmp_path / SAVING).exists()


def test_weights_of_the_step_are_saved_not_those_since(
    disk: SlowDisk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    more = {**STEPS, "save_total_limit": None}
    disk.there.set()
    train(settings(tiny_model_dir, tmp_path / "at-once", **more, async_save=False))
    disk.there.clear()
    slow = AtStep(tmp_path / "beside", disk, ready=4)
    train(settings(tiny_model_dir, tmp_path / "beside", **more), callbacks=[slow])
    for step in (2, 4, 6):
        file = f"checkpoint-{step}/optimizer/rank-00000-part-000.safetensors"
        one, other = load_file(tmp_path / "at-once" / file), load_file(tmp_path / "beside" / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_disk_that_fills_up_meanwhile_ends_the_run(
    disk: SlowDisk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    disk.there.set()
    train(settings(tiny_model_dir, tmp_path, **{**STEPS, "max_steps": 2}))
    disk.there.clear()
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    more = settings(tiny_model_dir, tmp_path, **STEPS, resume_from_checkpoint="auto")
    with pytest.raises(UserError, match="No space left on device"):
        train(more, callbacks=[AtStep(tmp_path, disk, ready=5)])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_run_that_fails_keeps_the_checkpoint_that_was_on_its_way_or_says_so(
    disk: SlowDisk, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(AtStep):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_begin(args, state, control)
            if state.global_step == 3:
                raise ValueError("a bug")

    for full, kept in ((False, ["checkpoint-2"]), (True, [])):
        folder = tmp_path / str(full)
        disk.there.clear()
        disk.error = OSError(errno.ENOSPC, "No space left on device") if full else None
        with pytest.raises(ValueError, match="a bug"):
            train(settings(tiny_model_dir, folder, **STEPS), callbacks=[Fails(folder, disk, 4)])
        assert [path.name for path in checkpoints(folder)] == kept
        lost = "checkpoint-2 was not yet in its place and is lost: [Errno 28] No space"
        assert full == any(said.startswith(lost) for said in caplog.messages)


@pytest.mark.parametrize("asked", [True, False])
def test_small_checkpoints_and_those_of_async_save_false_are_there_at_once(
    asked: bool, disk: SlowDisk, tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    if asked:
        monkeypatch.setattr(saving_trainer, "WORTH_A_THREAD", 2**26)
    disk.there.set()
    watch = AtStep(tmp_path, disk, ready=1)
    train(settings(tiny_model_dir, tmp_path, **STEPS, async_save=asked), callbacks=[watch])
    assert watch.seen[3] == ["checkpoint-2"] and watch.seen[5] == ["checkpoint-4"]


def test_without_memory_for_a_copy_training_waits_and_says_so_once(
    disk: SlowDisk, tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(engine_trainer, "free_memory", lambda: 1000)
    disk.there.set()
    train(settings(tiny_model_dir, tmp_path, **STEPS))
    told = [said for said in caplog.messages if said.startswith("saving: training waits")]
    assert len(told) == 1 and "0.0 GiB of memory to spare" in told[0]
    assert damage(tmp_path / "checkpoint-6") is None


def test_a_copy_takes_what_was_said(tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Weights and both of Adam's averages, by which it is decided whether memory holds them."""
    seen: list[tuple[int, int]] = []
    whole = EngineTrainer._save_optimizer_and_scheduler

    def noting(self: EngineTrainer, folder: str) -> None:
        whole(self, folder)
        copies = sum(file.nbytes for file in self.unwritten or [])
        seen.append((copies, elastic.held_bytes(self._holding(), self.runtime)))

    monkeypatch.setattr(EngineTrainer, "_save_optimizer_and_scheduler", noting)
    train(settings(tiny_model_dir, tmp_path, **STEPS))
    assert len(seen) == 3 and all(copies == said > 0 for copies, said in seen), seen
