"""One attempt of a run as a process that something happens to: a fork, or a real launch."""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from orpo_dist.runs.folder import read_metrics
from tests.launching import Process, finish, listens_for, rank_process, start

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
LONGEST = 1800.0  # s of one attempt; a hung one is killed
LAUNCH_LONGEST = 300.0
HANGS = -1000  # the exit code of an attempt that had to be ended


@dataclass
class Attempt:
    """One process: its exit code (negative: killed) and all it has said."""

    code: int
    said: str

    @property
    def clean(self) -> bool:
        return "Traceback" not in self.said and self.code != HANGS


def in_a_process(
    words: list[str], number: int | None = None, after: float = 0.0, room: int | None = None
) -> Attempt:
    """Run a command in a fork of this process, which has imported everything already.

    number, after: a signal it gets after so many seconds. room: bytes that a file may have there.
    """
    with tempfile.TemporaryFile() as output:
        # A signal may not come before the fork is the command: it would be the campaign's then.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS.values())
        pid = os.fork()
        if pid == 0:
            _be_the_command(words, output.fileno(), room)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS.values())
        timers = [threading.Timer(LONGEST, _signal, (pid, signal.SIGKILL))]
        if number is not None:
            timers.append(threading.Timer(after, _signal, (pid, number)))
        for timer in timers:
            timer.start()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        for timer in timers:  # before the number of the process can be another's
            timer.cancel()
            timer.join()
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        said = output.read().decode(errors="replace")
    return Attempt(os.waitstatus_to_exitcode(status), said)


def launched(
    place: tuple[str, int], words: list[str], happens: Callable[[Process], None] | None = None
) -> Attempt:
    """Run a command on several processes with ``orpo-dist launch``.

    place: preset, number of processes. happens: called beside it with the launcher; returns when
    its fault is injected, or the launcher has ended.
    """
    launch = [sys.executable, "-m", "orpo_dist", "launch", place[0], "--num-processes"]
    process = start([*launch, str(place[1]), "--", *words])
    thread = threading.Thread(target=happens or (lambda _: None), args=(process,))
    thread.start()
    try:
        code, output, errors = finish(process, LAUNCH_LONGEST)  # all ranks have let go of the pipes
    except AssertionError as error:
        return Attempt(HANGS, str(error))
    finally:
        thread.join()
    return Attempt(code, output + errors)


def limit(process: Process, room: int) -> None:
    """Files of at most so many bytes, for a launcher and the ranks it will start."""
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, room))


def hit(process: Process, number: int, rank: int | None) -> None:
    """Send a signal to a launcher that listens, Python being up, or to one of its ranks."""
    while process.poll() is None and not listens_for(process, signal.SIGTERM):
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, AssertionError, psutil.Error):  # it has ended
        os.kill(process.pid if rank is None else rank_process(process, rank), number)


def wait_for(process: Process, folder: Path, step: int) -> None:
    """Return when a run has logged a step, or its launcher has ended."""
    while process.poll() is None:
        log = read_metrics(folder / "metrics.jsonl")
        if log and log[-1]["step"] >= step:
            return
        time.sleep(0.02)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _be_the_command(words: list[str], output: int, room: int | None) -> None:
    """In the fork: nothing of the parent's is run on the way out."""
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS.values())
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        from orpo_dist.base.exits import leave, recorded
        from orpo_dist.cli import main

        code = recorded(lambda: main(words))
        with contextlib.suppress(SystemExit):
            leave(code)
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
    finally:
        with contextlib.suppress(BaseException):  # a late signal
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
