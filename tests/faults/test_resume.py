"""Nothing is lost: killed, interrupted and crashed runs go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orpo_dist import UserError, train
from orpo_dist.base.exits import EXIT_INTERRUPTED, EXIT_REQUEUE, EXIT_USER_ERROR
from orpo_dist.runs.folder import newest_checkpoint, read_metrics
from tests.conftest import DEMO, ROOT
from tests.launching import finish, listens_for, start, wait_until
from tests.unit.training.test_run import settings

STEPS = {
    "max_steps": 12,
    "save_strategy": "steps",
    "save_steps": 5,
    "lora_dropout": 0.1,
    "peft": True,
}


def curve(folder: Path) -> dict[int, float]:
    entries = read_metrics(folder / "metrics.jsonl")
    assert len({entry["step"] for entry in entries}) == len(entries)  # no step logged twice
    return {entry["step"]: entry["loss/orpo"] for entry in entries}


def test_resumed_curve_and_weights_equal_the_uninterrupted_run(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Across an epoch boundary (192 pairs = 48 steps of 4) and with dropout in the adapter."""
    extra: dict[str, Any] = {**STEPS, "max_steps": 55, "save_steps": 20, "save_total_limit": None}
    train(settings(tiny_model_dir, tmp_path / "whole", **extra))
    for step in (20, 40):
        cut = tmp_path / f"cut-{step}"
        shutil.copytree(tmp_path / "whole", cut)
        for later in cut.glob("checkpoint-*"):
            if int(later.name.split("-")[1]) > step:
                shutil.rmtree(later)
        (cut / "adapter_model.safetensors").unlink()  # as a run that died has none
        train(settings(tiny_model_dir, cut, resume_from_checkpoint="auto", **extra))
        assert curve(cut) == pytest.approx(curve(tmp_path / "whole"), abs=1e-6)
        mine, whole = (
            load_file(folder / "adapter_model.safetensors") for folder in (cut, tmp_path / "whole")
        )
        for name, tensor in whole.items():
            torch.testing.assert_close(mine[name], tensor, atol=1e-6, rtol=1e-5)


def start_training(model: Path, folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "orpo_dist", "train", "--model", str(model), "--data-path",
        str(DEMO / "train.jsonl"), "--project-name", str(folder), "--batch-size", "4",
        "--gradient-accumulation", "1", "--lr", "1e-2", "--logging-steps", "1", "--max-steps",
        "400", "--save-strategy", "steps", "--save-steps", "10", *flags,
    ]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = read_metrics(folder / "metrics.jsonl")
        if log and log[-1]["step"] >= step:
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


def test_sigkill_then_auto_resume(tiny_model_dir: Path, tmp_path: Path) -> None:
    process = start_training(tiny_model_dir, tmp_path)
    wait_for_step(tmp_path, 23, process)
    process.kill()
    process.wait()
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    killed = curve(tmp_path)
    rerun = start_training(
        tiny_model_dir, tmp_path, "--resume-from-checkpoint", "auto", "--scheduler", "cosine"
    )
    wait_for_step(tmp_path, max(killed) + 2, rerun)
    rerun.kill()
    rerun.wait()
    resumed = curve(tmp_path)
    for step, loss in killed.items():
        assert resumed[step] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_stop_cleanly(tiny_model_dir: Path, tmp_path: Path, number: int) -> None:
    process = start_training(tiny_model_dir, tmp_path)
    wait_for_step(tmp_path, 12, process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume-from-checkpoint auto" in errors
    assert "Traceback" not in errors
    last = max(curve(tmp_path))
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{last}"
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"


def test_half_written_checkpoints_are_passed_over(tiny_model_dir: Path, tmp_path: Path) -> None:
    train(settings(tiny_model_dir, tmp_path, **STEPS))
    broken = tmp_path / "checkpoint-11"
    shutil.copytree(tmp_path / "checkpoint-10", broken)
    (broken / "trainer_state.json").write_text('{"global_st')
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-12"
    shutil.rmtree(tmp_path / "checkpoint-12")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_resume_from_something_else_is_one_sentence(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a complete checkpoint"):
        train(settings(tiny_model_dir, tmp_path, resume_from_checkpoint=str(tmp_path)))


def test_resuming_after_the_last_step_changes_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Killed between the last checkpoint and the model; 12 steps end within an epoch."""
    train(settings(tiny_model_dir, tmp_path, **STEPS))
    before = curve(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    train(settings(tiny_model_dir, tmp_path, resume_from_checkpoint="auto", **STEPS))
    assert curve(tmp_path) == before
    after = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def test_auto_without_a_checkpoint_starts_afresh(tiny_model_dir: Path, tmp_path: Path) -> None:
    train(settings(tiny_model_dir, tmp_path, resume_from_checkpoint="auto"))
    assert max(curve(tmp_path)) == 4


@pytest.mark.parametrize(
    ("number", "seconds"),
    [
        (signal.SIGINT, 0.0), (signal.SIGINT, 0.5), (signal.SIGTERM, 0.2), (signal.SIGTERM, 1.0),
        *(pytest.param(number, seconds, marks=pytest.mark.slow) for number, seconds in (
            (signal.SIGTERM, 0.0), (signal.SIGTERM, 0.5), (signal.SIGINT, 0.2), (signal.SIGINT, 1.0)
        )),
    ],
)  # fmt: skip
@pytest.mark.parametrize("launch", [(), ("launch", "ddp", "--num-processes", "2", "--")])
def test_a_signal_while_modules_load_is_no_traceback(
    launch: tuple[str, ...], number: signal.Signals, seconds: float
) -> None:
    words = [sys.executable, "-m", "orpo_dist", *launch, "train", "--model", "none"]
    process = start(words)
    wait_until(lambda: listens_for(process, signal.SIGTERM), process)
    time.sleep(seconds)
    process.send_signal(number)
    code, _, errors = finish(process)
    assert code in (EXIT_INTERRUPTED, EXIT_USER_ERROR), errors  # the latter was faster
    assert "Traceback" not in errors


def console_script() -> list[str]:
    """What pip writes into ``orpo-dist`` for the entry point of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["orpo-dist"].split(":")
    return [sys.executable, "-c", f"import sys; from {module} import {function}; "
            f"sys.exit({function}())"]  # fmt: skip


@pytest.mark.parametrize("seconds", [0.0, 0.3])
@pytest.mark.parametrize("script", [False, True], ids=["module", "script"])
def test_both_ways_to_start_end_sigusr1_with_the_code_for_a_requeue(
    script: bool, seconds: float, tiny_model_dir: Path, tmp_path: Path
) -> None:
    words = console_script() if script else [sys.executable, "-m", "orpo_dist"]
    data = str(DEMO / "train.jsonl")
    where = ["--model", str(tiny_model_dir), "--project-name", str(tmp_path / "run")]
    process = start([*words, "train", *where, "--data-path", data])
    wait_until(lambda: listens_for(process, signal.SIGUSR1), process)
    time.sleep(seconds)  # torch is still being imported
    process.send_signal(signal.SIGUSR1)
    code, _, errors = finish(process)
    assert code == EXIT_REQUEUE, errors
    assert "Traceback" not in errors
