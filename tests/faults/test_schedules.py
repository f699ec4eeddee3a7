"""A staged run and a curriculum run, killed and resumed, equal the uninterrupted ones."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orpo_dist.runs.folder import RunFolder, newest_checkpoint
from tests.faults.test_resume import curve, start_training, wait_for_step

STAGES = [
    {"orpo_alpha": 0},
    {"orpo_alpha_schedule": "ramp", "lr": 0.003},
    {"curriculum": "length", "curriculum_start": 0.2},
]
FLAGS = {
    "stages": ["--stages", json.dumps(STAGES), "--max-steps", "40"],
    "curriculum": ["--curriculum", "margin", "--curriculum-pacing", "root", "--max-steps", "120"],
}


KILLED = {"stages": (23, 90), "curriculum": (57,)}


def finish(model: Path, folder: Path, *flags: str) -> None:
    process = start_training(model, folder, *flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("kind", sorted(FLAGS))
def test_killed_again_and_again_it_equals_the_uninterrupted(
    tiny_model_dir: Path, tmp_path: Path, kind: str
) -> None:
    """120 steps, a checkpoint every 10; killed by SIGKILL on the way, then left alone."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    resume = [*FLAGS[kind], "--resume-from-checkpoint", "auto"]
    finish(tiny_model_dir, whole, *FLAGS[kind])
    for step in KILLED[kind]:
        process = start_training(tiny_model_dir, killed, *resume)
        wait_for_step(killed, step, process)
        process.kill()
        process.wait()
        assert newest_checkpoint(killed) is not None
        assert not (killed / "model.safetensors").exists()
    finish(tiny_model_dir, killed, *resume)
    assert sorted(curve(whole)) == list(range(1, 121))
    assert curve(killed) == pytest.approx(curve(whole), abs=1e-6)
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (killed, whole))
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_signal_in_the_second_stage_stops_with_a_checkpoint_there(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    process = start_training(tiny_model_dir, tmp_path, *FLAGS["stages"])
    wait_for_step(tmp_path, 52, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "in stage 2 of 3; go on with the same command" in errors
    last = max(curve(tmp_path))
    assert newest_checkpoint(tmp_path) == tmp_path / "stage-2" / f"checkpoint-{last - 40}"
    assert len(RunFolder(tmp_path).finished_stages()) == 1
