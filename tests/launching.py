"""Runs of several real processes through the real command line, as the tests need them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orpo_dist.launch import presets
from orpo_dist.launch.argv import Topology, plan_launch
from orpo_dist.runs.folder import read_metrics
from tests.conftest import DEMO, ROOT

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
SEVERAL = Path(__file__).parent / "distributed" / "moves.py"
TIMEOUT = 240  # s; nothing here computes for more than a few seconds

Process = subprocess.Popen[str]


def training(model: Path, folder: Path, *flags: str) -> list[str]:
    """A short training as words of a command line; later flags win over these."""
    return [
        "train", "--model", str(model), "--data-path", str(DEMO / "train.jsonl"),
        "--project-name", str(folder), "--global-batch-size", "8", "--batch-size", "2",
        "--lr", "1e-3", "--logging-steps", "1", "--save-strategy", "no", "--log", "none", *flags,
    ]  # fmt: skip


def launched(preset: str, *flags: str) -> list[str]:
    """The words that launch two processes (one for ``single``) with orpo-dist itself."""
    processes = "1" if preset == "single" else "2"
    launch = [sys.executable, "-m", "orpo_dist", "launch", preset, "--num-processes", processes]
    return [*launch, *flags, "--"]


def environment(**more: str) -> dict[str, str]:
    """For a process that is to import this tree, whatever is installed."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def start(words: Sequence[str], **variables: str) -> Process:
    """Start a command with its output in pipes, two threads away from starving each other."""
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(**variables),
        start_new_session=True,
    )


def finish(process: Process, timeout: float = TIMEOUT) -> tuple[int, str, str]:
    """Exit code, output and errors; kills the whole job and fails where it hangs."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for member in members(process):
            os.kill(member, 9)
        output, errors = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{errors}") from None
    return process.returncode, output, errors


def run(words: Sequence[str], **variables: str) -> str:
    """Run a command that must succeed; returns its errors (where the log goes)."""
    code, _, errors = finish(start(words, **variables))
    assert code == 0, errors
    return errors


def in_one_launch(
    preset: str, processes: int, jobs: Sequence[dict[str, Any]], folder: Path, timeout: float = 600
) -> str:
    """Train with these settings, one run after another in one process group; returns the log.

    Half a minute of a launch are processes that start: this has them start once.
    """
    file = folder / f"{preset}-{processes}.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    plan = plan_launch(presets.find(preset), Topology(), processes, [])
    argv = plan.argv[: plan.argv.index("-m", 3)]
    assert argv[0] == sys.executable
    code, _, errors = finish(start([*argv, str(SEVERAL), str(file)], **plan.environment), timeout)
    assert code == 0, errors
    return errors


def members(process: Process) -> list[int]:
    """Process ids of the launcher and everything under it."""
    import psutil

    try:
        root = psutil.Process(process.pid)
        return [root.pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def rank_process(process: Process, rank: int) -> int:
    """The process id of a rank."""
    import psutil

    for pid in members(process):
        if psutil.Process(pid).environ().get("RANK") == str(rank):
            return pid
    raise AssertionError(f"no rank {rank}")


def wait_for_step(folder: Path, step: int, process: Process, timeout: float = 120) -> None:
    """Return once the run has logged a step."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        log = read_metrics(folder / "metrics.jsonl")
        if log and log[-1]["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} did not come:\n{finish(process, 1)}")


def wait_until(true: Callable[[], bool], process: Process, timeout: float = 60) -> None:
    """Return once something holds of a running process."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        if true():
            return
        time.sleep(0.02)
    raise AssertionError(f"it did not come:\n{finish(process, 1)}")


def listens_for(process: Process, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def listens_on(process: Process, port: int) -> bool:
    """Whether a process accepts connections on a port."""
    import psutil

    return any(
        c.status == "LISTEN" and c.laddr.port == port
        for c in psutil.Process(process.pid).net_connections()
    )


def curve(folder: Path, metric: str = "loss/orpo") -> dict[int, float]:
    """A metric by step; no step is there twice."""
    entries = [e for e in read_metrics(folder / "metrics.jsonl") if metric in e]
    found = {entry["step"]: entry[metric] for entry in entries}
    assert len(found) == len(entries)
    return found


def assert_engine(folder: Path, engine: str, world_size: int) -> None:
    """What run.json says of the engine was seen in the prepared model, not copied from the flag."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (record["engine"], record["world_size"]) == (engine, world_size)
