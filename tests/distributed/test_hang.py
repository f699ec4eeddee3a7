"""A rank that hangs is named, all ranks leave their stacks, and the job ends to be tried again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from orpo_dist.runs.folder import read_metrics
from orpo_dist.runs.heartbeats import FOLDER
from tests.conftest import ROOT
from tests.launching import finish, launched, rank_process, run, start, training, wait_for_step

LONG = ("--max-steps", "5000", "--hang-timeout", "8")

# Loaded by Python itself at the start of every process: rank 1 waits for ever in its own code.
DEADLOCK = """
import os, signal, threading, time

def deadlock(number, frame):
    threading.Event().wait()

def watch():
    while not os.path.exists(os.environ["SABOTAGE"]) or not os.path.getsize(os.environ["SABOTAGE"]):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGALRM)

if os.environ.get("RANK") == "1":
    signal.signal(signal.SIGALRM, deadlock)
    threading.Thread(target=watch, daemon=True).start()
"""


@pytest.mark.parametrize(
    ("preset", "rank"), [("ddp", 1), pytest.param("zero2", 0, marks=pytest.mark.slow)]
)
def test_a_stopped_rank_is_named(
    preset: str, rank: int, tiny_model_dir: Path, tmp_path: Path
) -> None:
    save = ("--save-strategy", "steps", "--save-steps", "5")
    words = launched(preset) + training(tiny_model_dir, tmp_path, *LONG, *save)
    process = start(words)
    wait_for_step(tmp_path, 7, process)
    stopped = rank_process(process, rank)
    os.kill(stopped, signal.SIGSTOP)
    code, _, errors = finish(process, 80)  # 8, and 30 that torchrun gives the stopped one
    assert code == 76, errors
    (told,) = [line for line in errors.splitlines() if "error: " in line]
    assert f"the job hangs (rank {rank} (process {stopped} on " in told
    assert "no sign of life" in told
    assert "Traceback" not in errors
    stacks = (tmp_path / "hang" / f"rank-{1 - rank}.txt").read_text()
    assert "training_step" in stacks or "on_step_end" in stacks or "save" in stacks
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "failed" and f"rank {rank}" in record["error"]
    step = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
    more = ("--resume-from-checkpoint", "auto", "--max-steps", str(step + 2))
    run([*words, *more])
    assert not (tmp_path / FOLDER).exists()


def test_a_rank_that_waits_in_its_own_code_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEADLOCK)
    folder = tmp_path / "run"
    process = start(
        launched("ddp") + training(tiny_model_dir, folder, *LONG),
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
        SABOTAGE=str(folder / "metrics.jsonl"),
    )
    code, _, errors = finish(process, 150)
    assert code == 76, errors
    assert "the job hangs (" in errors
    assert "deadlock" in (folder / "hang" / "rank-1.txt").read_text()
    assert (folder / "hang" / "rank-0.txt").exists()
