"""Real sweeps through the real command line, and a look at what they leave running."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from orpo_dist.sweeps.protocol import Trial, read_trials
from tests.launching import Process, finish, start

# Ray's processes are named for what they do; a training worker is one of these.
WORKER = "ray::RayTrainWorker"


def sweep(*words: str, **environment: str) -> Process:
    """Start ``orpo-dist sweep WORDS``."""
    return start([sys.executable, "-m", "orpo_dist", "sweep", *words], **environment)


def done(process: Process, timeout: float = 400) -> str:
    """What a sweep that must succeed has said."""
    code, _, errors = finish(process, timeout)
    assert code == 0, errors
    return errors


def ray_processes(sweep: Process, word: str = "ray") -> set[int]:
    """Process ids of everything of a sweep's own Ray that is alive, or of one kind of it.

    They are all in the session that the sweep was started in, also when it is gone itself.
    """
    found = set()
    for process in psutil.process_iter():
        try:
            ours = os.getsid(process.pid) == sweep.pid and process.pid != sweep.pid
            alive = process.status() != psutil.STATUS_ZOMBIE
            if ours and alive and word in " ".join(process.cmdline()):
                found.add(process.pid)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def first_worker(project: Path, trial: Trial, sweep: Process) -> int | None:
    """The process of rank 0 of a running trial: it has the trial's log open."""
    log = str(project / "trials" / trial.name / "log.txt")
    for pid in ray_processes(sweep, WORKER):
        try:
            if any(file.path == log for file in psutil.Process(pid).open_files()):
                return pid
        except psutil.Error:
            continue
    return None


def trial_named(project: Path, number: str) -> Trial:
    (found,) = (trial for trial in read_trials(project) if trial.name.startswith(number))
    return found


def wait_until(happened: Callable[[], Any], process: Process, seconds: float = 120) -> Any:
    """What ``happened`` returns once it is true; fails if the sweep ends before, or in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := happened():
            return found
        if process.poll() is not None:
            raise AssertionError(f"the sweep has ended:\n{finish(process, 1)}")
        time.sleep(0.05)
    raise AssertionError(f"did not happen:\n{finish(process, 1)}")


def run_of(project: Path, trial: Trial) -> dict[str, Any]:
    """run.json of a trial."""
    content = json.loads((project / "trials" / trial.name / "run.json").read_text())
    assert isinstance(content, dict)
    return content
