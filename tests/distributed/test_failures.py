"""When a rank dies the job ends soon, with that rank's own words, and never hangs."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from orpo_dist.launch.machine import free_port
from tests.conftest import ROOT
from tests.launching import (
    finish,
    launched,
    listens_on,
    rank_process,
    run,
    start,
    training,
    wait_for_step,
    wait_until,
)

LONG = ("--max-steps", "5000")

# Loaded by Python itself at the start of every process: rank 1 fails as soon as steps are logged.
SABOTAGE = """
import os, signal, threading, time

def fail(number, frame):
    raise ValueError("the disk of rank 1 is on fire")

def watch():
    while not os.path.exists(os.environ["SABOTAGE"]) or not os.path.getsize(os.environ["SABOTAGE"]):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGALRM)

if os.environ.get("RANK") == "1":
    signal.signal(signal.SIGALRM, fail)
    threading.Thread(target=watch, daemon=True).start()
"""


def test_an_error_on_one_rank_is_told_first_and_ends_the_job(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    folder = tmp_path / "run"
    process = start(
        launched("zero3") + training(tiny_model_dir, folder, *LONG),
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
        SABOTAGE=str(folder / "metrics.jsonl"),
    )
    wait_for_step(folder, 1, process)
    code, _, errors = finish(process, 30)
    assert code == 1
    told = errors[errors.index("orpo-dist: ") :].splitlines()
    assert told[0] == "orpo-dist: rank 1 failed:"
    assert "ValueError: the disk of rank 1 is on fire" in told
    assert told[-1] == "orpo-dist: rank 1 failed first: ValueError: the disk of rank 1 is on fire"
    assert errors.count("Traceback") == 1  # the others do not bury it under theirs


def test_a_killed_rank_ends_the_job(tiny_model_dir: Path, tmp_path: Path) -> None:
    process = start(launched("fsdp2") + training(tiny_model_dir, tmp_path, *LONG))
    wait_for_step(tmp_path, 1, process)
    os.kill(rank_process(process, 1), signal.SIGKILL)
    code, _, errors = finish(process, 30)
    assert code == 128 + signal.SIGKILL
    assert errors.splitlines()[-1].startswith("orpo-dist: rank 1 was killed by SIGKILL")
    assert json.loads((tmp_path / "run.json").read_text())["status"] in ("failed", "running")


def test_a_mistake_is_told_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    flags = ("--data-path", str(tmp_path / "missing.jsonl"))
    code, _, errors = finish(start(launched("ddp") + training(tiny_model_dir, tmp_path, *flags)))
    assert code == 2
    told = [line for line in errors.splitlines() if line.startswith("orpo-dist: ")]
    assert len(told) == 1 and "does not exist" in told[0]
    assert "Traceback" not in errors


def test_two_launches_at_once_do_not_meet(tiny_model_dir: Path, tmp_path: Path) -> None:
    both = [
        start(launched(preset) + training(tiny_model_dir, tmp_path / preset, "--max-steps", "3"))
        for preset in ("ddp", "zero2")
    ]
    for process in both:
        code, _, errors = finish(process)
        assert code == 0, errors


def test_a_launcher_that_waits_for_other_machines_ends_on_sigterm(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """torchrun waits inside C++ for minutes, where Python runs no signal handler."""
    port = free_port()
    others = ("--num-machines", "2", "--main-process-ip", "127.0.0.1", "--main-process-port")
    process = start(launched("ddp", *others, str(port)) + training(tiny_model_dir, tmp_path))
    wait_until(lambda: listens_on(process, port), process)
    time.sleep(1)  # into the wait itself
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, 10)[0] == 130


def test_what_cannot_run_here_is_refused_with_the_reason(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    words = launched("zero3_nvme", "--nvme-path", str(tmp_path))
    words += training(tiny_model_dir, tmp_path / "run", "--max-steps", "2")
    if AsyncIOBuilder().is_compatible():
        run(words)
        return
    code, _, errors = finish(start(words))
    assert code == 2
    assert "needs libaio" in errors
    assert not (tmp_path / "run").exists()
