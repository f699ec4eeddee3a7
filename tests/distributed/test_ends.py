"""A launcher takes its ranks with it, and a second signal ends what hangs."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from orpo_dist.runs.folder import newest_checkpoint
from tests.launching import (
    Process,
    finish,
    launched,
    members,
    rank_process,
    start,
    training,
    wait_for_step,
)

LONG = ("--max-steps", "5000")


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie waits for nobody but its parent."""
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def all_gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pids)


def begun(launch: list[str], model: Path, folder: Path, *flags: str) -> tuple[Process, list[int]]:
    """A training in its steps, and the process ids of all that belongs to it."""
    process = start(launch + training(model, folder, *LONG, *flags))
    wait_for_step(folder, 1, process)
    return process, members(process)


TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
    "-m", "--", "orpo_dist",
]  # fmt: skip


@pytest.mark.parametrize(
    "launch", [launched("single"), launched("ddp"), TORCHRUN], ids=["single", "ddp", "torchrun"]
)
def test_a_killed_launcher_takes_its_ranks_with_it(
    launch: list[str], tiny_model_dir: Path, tmp_path: Path
) -> None:
    process, everyone = begun(launch, tiny_model_dir, tmp_path)
    assert len(everyone) > 1
    os.kill(process.pid, signal.SIGKILL)
    gone = all_gone(everyone, 5)
    for pid in alive(everyone):
        os.kill(pid, signal.SIGKILL)
    assert gone


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_second_signal_ends_all_though_a_rank_hangs(
    number: int, tiny_model_dir: Path, tmp_path: Path
) -> None:
    process, everyone = begun(launched("ddp"), tiny_model_dir, tmp_path)
    os.kill(rank_process(process, 1), signal.SIGSTOP)
    time.sleep(1)  # the other one waits for it
    os.kill(process.pid, number)
    time.sleep(2)
    assert process.poll() is None
    os.kill(process.pid, number)
    assert all_gone(everyone, 5)
    code, _, errors = finish(process, 20)
    assert code == 130, errors
    assert "Traceback" not in errors


def test_the_first_signal_saves(tiny_model_dir: Path, tmp_path: Path) -> None:
    process, everyone = begun(launched("ddp"), tiny_model_dir, tmp_path, "--save-strategy", "epoch")
    os.kill(process.pid, signal.SIGTERM)
    code, _, errors = finish(process, 60)
    assert code == 130, errors
    assert newest_checkpoint(tmp_path) is not None
    assert all_gone(everyone, 1)
