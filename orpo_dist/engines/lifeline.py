"""A rank does not outlive its launcher: nobody could stop it, and a relaunch would run beside it.

A launcher that is killed with SIGKILL can tell its ranks nothing, so the kernel does (Linux), or a
thread of the rank looks after its parent (elsewhere).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

LAUNCHER = "ORPO_LAUNCHER"  # environment variable: the process id of orpo-dist launch
PERIOD = 1.0  # s between two looks at the parent, where the kernel does not tell
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def hold_on_to_launcher() -> None:
    """Die with the launcher, if one started this process: ``orpo-dist launch`` or torchrun.

    The kernel's signal comes when the *thread* that started this process ends; both launchers start
    theirs from the main thread. One that is gone already, as Python came up, ends this at once.
    """
    launcher = int(os.environ.pop(LAUNCHER, 0))  # popped: not the launcher of what this one starts
    if launcher or "TORCHELASTIC_RUN_ID" in os.environ:
        _follow(launcher or os.getppid())


def announce_launcher() -> None:
    """Said by the launcher, for all processes that it will start."""
    os.environ[LAUNCHER] = str(os.getpid())


def _follow(parent: int) -> None:
    if not _killed_by_kernel():
        threading.Thread(target=_look_after, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # gone before the kernel could be asked
        _end()


def _killed_by_kernel() -> bool:
    """Whether the kernel will send SIGKILL when the parent ends."""
    if sys.platform != "linux":
        return False
    import ctypes  # here, as only ranks pay for it

    return ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0


def _look_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD)
    _end()


def _end() -> None:
    """As the kernel would: a thread could not end the main one otherwise."""
    os.kill(os.getpid(), signal.SIGKILL)
