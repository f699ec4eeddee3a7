"""Exit codes, which job scripts act on, and how they get past launchers that lose them."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

EXIT_CRASH = 1
EXIT_USER_ERROR = 2  # the user's mistake: trying again cannot help
EXIT_GAVE_UP = 3  # could go on, but will not be queued again: requeue cap, no progress
EXIT_BAD_NODES = 4  # the preflight of a job named nodes that are not fit
EXIT_DOES_NOT_FIT = 5  # a plan found no way to run what was asked for
EXIT_TEMPORARY = 75  # the network or a server failed: trying again may help (as in sysexits.h)
EXIT_HUNG = 76  # a rank hung and the job was ended: trying again may help
EXIT_REQUEUE = 85  # stopped by SIGUSR1 with a checkpoint saved: queue again and resume
EXIT_INTERRUPTED = 130  # Ctrl-C and SIGTERM: someone wants the run to end

COMMAND = threading.Event()  # set where this process is a command's own, to be ended by it
RECORDS = "ORPO_EXIT_CODES"  # environment variable: a folder where every rank leaves its exit code


def recorded(main: Callable[[], int]) -> int:
    """Run ``main``; leave its exit code as ``rank-R`` in the folder that a job script has named.

    torchrun and ``accelerate launch`` end with 1 whatever their processes ended with. SIGUSR1 asks
    for a requeue from the first moment on: while modules load, before training listens for it,
    there is nothing to save. SIGTERM is a Ctrl-C wherever nobody listens for it.
    """
    code = EXIT_CRASH
    COMMAND.set()
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(EXIT_REQUEUE))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:  # outside what main guards: another rank may just be waited for
        code = EXIT_INTERRUPTED
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_CRASH
        raise
    finally:
        _record(code)
    return code


def _record(code: int) -> None:
    folder, rank = os.environ.get(RECORDS), os.environ.get("RANK")
    if folder and rank:
        Path(folder, f"rank-{rank}").write_text(str(code), encoding="utf-8")


def end_now(code: int) -> NoReturn:
    """End this process with ``code`` from any thread, whatever the main one waits for."""
    with contextlib.suppress(OSError):
        _record(code)
    os._exit(code)


def leave(code: int) -> NoReturn:
    """End this process with ``code``, after Python's own goodbyes; a signal only hurries it.

    A rank of several goes without the teardown of C++ libraries: a thread of gloo or DeepSpeed that
    is still there then aborts the process (seen once under ZeRO-2, after a checkpoint was saved),
    and with it goes the code that launchers and job scripts act on. One that was interrupted goes
    so, too: where a Ctrl-C has met an ``exec``, as of a dataclass, CPython ends itself with SIGINT.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: end_now(code))
    if "RANK" not in os.environ and code != EXIT_INTERRUPTED:
        sys.exit(code)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def recorded_codes(folder: Path) -> dict[int, int]:
    """The exit codes that ranks have left, by rank; a rank that was killed has left none."""
    codes = {}
    for path in folder.glob("rank-*"):
        rank, code = path.name.removeprefix("rank-"), path.read_text(encoding="utf-8")
        if rank.isdigit() and code.isdigit():
            codes[int(rank)] = int(code)
    return codes
