"""Nothing is lost on several processes: killed, stopped and moved runs go on as if nothing was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from orpo_dist.runs.folder import newest_checkpoint
from tests.conftest import DEMO
from tests.launching import (
    curve,
    finish,
    in_one_launch,
    launched,
    listens_for,
    members,
    rank_process,
    run,
    start,
    training,
    wait_for_step,
    wait_until,
)

ADAPTER = {
    "data_path": str(DEMO / "train.jsonl"), "peft": True, "lora_dropout": 0.1, "lr": 1e-2,
    "max_steps": 8, "save_strategy": "steps", "save_steps": 5, "batch_size": 4,
    "global_batch_size": 8, "logging_steps": 1, "log": "none",
}  # fmt: skip


def forget_after(folder: Path, step: int) -> None:
    """Leave what a run that died after the checkpoint of ``step`` would have left."""
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()


@pytest.mark.parametrize(
    "engine",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "zero1")),
        "zero2",
        "zero3",
        "fsdp2",
    ],
)
def test_adapter_resumes_exactly_and_loads_with_peft(
    engine: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """With dropout, whose random numbers have to go on as well on every rank."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"model": str(tiny_model_dir), **ADAPTER}
    begun = {"project_name": str(whole)}
    gone_on = {"project_name": str(cut), "resume_from_checkpoint": str(whole / "checkpoint-5")}
    in_one_launch(engine, 2, [{**settings, **job} for job in (begun, gone_on)], tmp_path)
    after, uninterrupted = curve(cut), curve(whole)
    assert list(after) == [6, 7, 8]
    assert after == pytest.approx({step: uninterrupted[step] for step in after}, abs=1e-6)
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (cut, whole))
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-6, rtol=1e-5)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), cut)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            assert parameter.abs().max() > 1e-3, name  # an adapter that was not saved stays at 0


def test_a_run_moves_between_one_and_two_processes(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The global batch of the checkpoint wins over the flags, so the data go on in order."""
    steps = ("--max-steps", "8", "--save-strategy", "steps", "--save-steps", "5", "--lr", "1e-2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(launched("single") + training(tiny_model_dir, whole, *steps))
    shutil.copytree(whole, cut)
    forget_after(cut, 5)
    words = training(tiny_model_dir, cut, *steps, "--resume-from-checkpoint", "auto")
    at = words.index("--global-batch-size")
    del words[at : at + 2]
    run(launched("ddp") + words)
    assert curve(cut) == pytest.approx(curve(whole), rel=1e-5)
    assert json.loads((cut / "run.json").read_text())["world_size"] == 2


def test_zero2_killed_and_resumed_equals_the_uninterrupted_run(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    steps = ("--save-strategy", "steps", "--save-steps", "10", "--max-steps", "400")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(launched("zero2") + training(tiny_model_dir, killed, *steps))
    wait_for_step(killed, 23, process)
    for pid in members(process):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    before = curve(killed)
    resume = ("--resume-from-checkpoint", "auto")
    for folder, flags, until in ((killed, resume, max(before) + 2), (whole, (), max(before))):
        process = start(launched("zero2") + training(tiny_model_dir, folder, *steps, *flags))
        wait_for_step(folder, until, process)
        for pid in members(process):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    after, uninterrupted = curve(killed), curve(whole)
    for step in before:
        assert after[step] == pytest.approx(uninterrupted[step], abs=1e-6)


@pytest.mark.parametrize(
    ("preset", "number", "to", "code"),
    [("zero2", signal.SIGUSR1, "launcher", 85), ("fsdp2", signal.SIGUSR1, "rank 1", 85),
     # beside test_ends.test_the_first_signal_saves
     pytest.param("ddp", signal.SIGTERM, "launcher", 130, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_signal_to_anyone_stops_all_with_a_checkpoint(
    preset: str, number: int, to: str, code: int, tiny_model_dir: Path, tmp_path: Path
) -> None:
    process = start(launched(preset) + training(tiny_model_dir, tmp_path, "--max-steps", "2000"))
    wait_for_step(tmp_path, 3, process)
    os.kill(process.pid if to == "launcher" else rank_process(process, 1), number)
    found, _, errors = finish(process, 60)
    assert found == code, errors
    assert errors.count("--resume-from-checkpoint auto") == 1
    assert "Traceback" not in errors
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == f"checkpoint-{max(curve(tmp_path))}"
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"


def test_one_process_stops_on_sigusr1_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    single = [sys.executable, "-m", "orpo_dist"]
    process = start(single + training(tiny_model_dir, tmp_path, "--max-steps", "2000"))
    wait_for_step(tmp_path, 3, process)
    os.kill(process.pid, signal.SIGUSR1)
    assert finish(process, 60)[0] == 85


def test_sigusr1_while_modules_load_asks_for_a_requeue(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    process = start([sys.executable, "-m", "orpo_dist", *training(tiny_model_dir, tmp_path)])
    wait_until(lambda: listens_for(process, signal.SIGUSR1), process)
    os.kill(process.pid, signal.SIGUSR1)
    code, _, errors = finish(process, 60)
    assert code == 85, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
