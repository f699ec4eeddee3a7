"""A disk that fills up in mid-run: one sentence, the last checkpoint whole, run.json true."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import orpo_dist.training.run
from orpo_dist import UserError, train
from orpo_dist.runs.lineage import checkpoints
from orpo_dist.runs.manifest import damage
from orpo_dist.training.trainer import ORPOTrainer
from tests.conftest import DEMO, ROOT
from tests.unit.training.test_run import settings


def test_no_room_for_a_checkpoint_is_one_sentence(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The optimizer's state is twice the weights: those fit, it does not."""
    command = [
        sys.executable, "-m", "orpo_dist", "train", "--model", str(tiny_model_dir), "--data-path",
        str(DEMO / "train.jsonl"), "--project-name", str(tmp_path), "--max-steps", "4",
        "--batch-size", "4", "--gradient-accumulation", "1",
    ]  # fmt: skip
    most = (tiny_model_dir / "model.safetensors").stat().st_size * 3 // 2
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("orpo-dist: error:") == 1
    assert "cannot be written to any more" in done.stderr
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"
    assert not checkpoints(tmp_path) and not (tmp_path / ".saving").exists()


@pytest.mark.parametrize("what", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_full_disk_leaves_the_last_checkpoint(
    what: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(ORPOTrainer, what)

    def full(self: ORPOTrainer, folder: str) -> None:
        if self.state.global_step == 4:
            raise OSError(28, os.strerror(28))
        whole(self, folder)

    monkeypatch.setattr(ORPOTrainer, what, full)
    config = settings(tiny_model_dir, tmp_path, save_strategy="steps", save_steps=2)
    with pytest.raises(
        UserError, match=r"\(No space left on device\); checkpoint-2 is whole: make"
    ):
        train(config)
    assert [(p.name, damage(p)) for p in checkpoints(tmp_path)] == [("checkpoint-2", None)]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"


def test_a_report_that_cannot_be_written_is_no_completed_run(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> Path:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(orpo_dist.training.run, "write_report", full)
    with pytest.raises(UserError, match="cannot be written to any more"):
        train(settings(tiny_model_dir, tmp_path))
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"


def test_sigterm_while_the_report_is_written_ends_as_elsewhere(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(folder: Path) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return folder

    monkeypatch.setattr(orpo_dist.training.run, "write_report", slow)
    with pytest.raises(KeyboardInterrupt):  # which the command line ends with 130
        train(settings(tiny_model_dir, tmp_path))
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
