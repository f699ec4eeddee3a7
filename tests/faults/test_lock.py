"""A run folder has one writer: a second is refused, and what a dead one left is taken over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orpo_dist import UserError, train
from orpo_dist.runs import lock
from orpo_dist.runs.folder import newest_checkpoint
from orpo_dist.runs.lock import LOCK, held
from tests.faults.test_resume import start_training, wait_for_step
from tests.unit.training.test_run import settings

ELSEWHERE = {"host": "node7", "place": "another boot"}


def leave(folder: Path, **changes: Any) -> lock.Holder:
    """The lock of another process in ``folder``."""
    folder.mkdir(exist_ok=True)
    holder = replace(lock._me(), **changes)
    (folder / LOCK).write_text(json.dumps(asdict(holder)))
    return holder


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    monkeypatch.setattr(lock, "DEAD_AFTER", 1.0)
    monkeypatch.setattr(lock, "ENDING", 0.5)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of every wait for a lock: they pass on its clocks at once, and not here."""
    waits: list[float] = []
    began, now = time.monotonic(), lock._now
    clock = SimpleNamespace(
        monotonic=lambda: began + sum(waits), sleep=waits.append, strftime=time.strftime
    )
    monkeypatch.setattr(lock, "time", clock)
    monkeypatch.setattr(lock, "_now", lambda path, me: now(path, me) + sum(waits))
    return waits


# --- real processes


def test_a_second_run_is_refused_and_the_first_goes_on(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    first = start_training(tiny_model_dir, tmp_path)
    wait_for_step(tmp_path, 3, first)
    second = start_training(tiny_model_dir, tmp_path, "--overwrite")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    (told,) = [line for line in errors.splitlines() if "error: " in line]
    assert f"is in use by process {first.pid} on {socket.gethostname()} since 20" in told
    assert "Traceback" not in errors
    assert first.poll() is None
    os.kill(first.pid, signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 130
    assert newest_checkpoint(tmp_path) is not None
    assert not (tmp_path / LOCK).exists()


def test_a_relaunch_right_after_a_kill_goes_on_at_once(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    first = start_training(tiny_model_dir, tmp_path)
    wait_for_step(tmp_path, 12, first)
    first.kill()  # and not waited for: it is a zombie by now
    assert (tmp_path / LOCK).exists()
    second = start_training(tiny_model_dir, tmp_path, "--resume-from-checkpoint", "auto")
    wait_for_step(tmp_path, 15, second)
    assert f'"pid": {second.pid}' in (tmp_path / LOCK).read_text()
    second.kill()
    for process in (first, second):
        process.communicate()


RACER = """
import sys, time
from pathlib import Path
from orpo_dist import UserError
from orpo_dist.runs import lock
lock.ENDING = 0.0
while time.time() < float(sys.argv[2]): pass
try:
    with lock.held(Path(sys.argv[1])):
        print("mine", flush=True)
        time.sleep(3)
except UserError:
    print("not mine")
"""


def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path: Path) -> None:
    leave(tmp_path, pid=2**22 + 1)
    words = [sys.executable, "-c", RACER, str(tmp_path), str(time.time() + 2)]
    racers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(said) == ["mine"] + ["not mine"] * 7
    assert [path.name for path in tmp_path.iterdir()] == []


# --- who counts as dead


def test_released_at_the_end_and_on_errors(tmp_path: Path) -> None:
    with held(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).exists()
        (tmp_path / "run" / "weights").touch()
    with pytest.raises(RuntimeError), held(tmp_path / "new"):
        raise RuntimeError
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["weights"]
    assert not (tmp_path / "new").exists()


def test_a_refused_run_leaves_no_folder(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = settings(tiny_model_dir, tmp_path / "run", resume_from_checkpoint=str(tmp_path))
    with pytest.raises(UserError, match="not a complete checkpoint"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"born": 1.0}])
def test_a_process_of_this_machine_that_is_gone(
    tmp_path: Path, changes: dict[str, Any], slept: list[float]
) -> None:
    """Or whose process id another one has by now."""
    leave(tmp_path, **changes)
    with held(tmp_path):
        assert slept == []


def test_a_process_of_this_machine_that_runs(tmp_path: Path, slept: list[float]) -> None:
    leave(tmp_path)
    with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on "), held(tmp_path):
        pass
    assert lock.ENDING <= sum(slept) < lock.ENDING + 2 * lock.PERIOD


def test_another_machine_that_lives_is_seen_to(tmp_path: Path, brisk: None) -> None:
    holder = leave(tmp_path, **ELSEWHERE)
    done = threading.Event()
    thread = threading.Thread(target=lock._keep, args=(tmp_path / LOCK, holder, done))
    thread.start()
    with pytest.raises(UserError, match="on node7 since"), held(tmp_path):
        pass
    done.set()
    thread.join()


def set_age(path: Path, seconds: float) -> None:
    old = time.time() - seconds
    os.utime(path, (old, old))


@pytest.mark.parametrize("age", [0, 45])
def test_another_machine_that_is_gone_is_waited_for(
    age: float, tmp_path: Path, slept: list[float]
) -> None:
    """Until the lock has not been touched for a minute, however much of that has passed."""
    leave(tmp_path, **ELSEWHERE)
    set_age(tmp_path / LOCK, age)
    with held(tmp_path):
        assert lock.DEAD_AFTER - age - 5 < sum(slept) < lock.DEAD_AFTER - age + 5
        assert all(0 < wait < lock.HEARTBEAT / 2 for wait in slept)  # a touch is soon seen


def test_a_lock_of_another_machine_that_is_old_is_free_at_once(
    tmp_path: Path, slept: list[float]
) -> None:
    leave(tmp_path, **ELSEWHERE)
    set_age(tmp_path / LOCK, 1000)
    with held(tmp_path):
        assert slept == []


def test_half_a_lock_counts_until_it_is_old(tmp_path: Path, slept: list[float]) -> None:
    (tmp_path / LOCK).write_text("")
    with held(tmp_path):
        assert sum(slept) > lock.DEAD_AFTER - 5


def test_without_hard_links(tmp_path: Path, brisk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with held(tmp_path):
        with pytest.raises(UserError, match="in use"), held(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_was_removed_by_hand_comes_back(tmp_path: Path, brisk: None) -> None:
    with held(tmp_path):
        (tmp_path / LOCK).unlink()
        time.sleep(1)
        assert (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), held(tmp_path / "file" / "run"):
        pass
