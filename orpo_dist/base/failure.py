"""What a process of several says when it fails: the guilty rank speaks first, and once.

Every rank of a job meets its error sooner or later: the one that failed its own, the others that it
is gone. A launcher ends the others as soon as the first is dead, so those wait before they speak.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

GRACE = 10.0  # s; launchers look after their processes about every second

# How torch, gloo and NCCL put it that another rank is gone.
LOST = (
    "gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe",
    "TCPStore",
)  # fmt: skip


def rank_among_others() -> int | None:
    """This process's rank, or None where it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    return int(os.environ.get("RANK", "0"))


def say(message: str) -> None:
    """A line to the user; other ranks than 0 wait for rank 0 to have said it, and name theirs."""
    rank = rank_among_others()
    if rank:
        time.sleep(GRACE)
    print(f"orpo-dist: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr, flush=True)


def crash(error: BaseException) -> None:
    """Print the traceback of an error that should not be, and leave it for the launcher."""
    rank = rank_among_others()
    if rank is not None:
        if any(word in str(error) for word in LOST):
            time.sleep(GRACE)
            print(f"orpo-dist: rank {rank} lost the others: {error}", file=sys.stderr, flush=True)
            return
        print(f"orpo-dist: rank {rank} failed:", file=sys.stderr)
        _leave_for_launcher(error)
    traceback.print_exception(error)
    sys.stderr.flush()


def _leave_for_launcher(error: BaseException) -> None:
    """Fill torchrun's error file, from which it names the rank that failed first."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {
            "py_callstack": "".join(traceback.format_exception(error)),
            "timestamp": str(int(time.time())),
        }
        message = {"message": f"{type(error).__name__}: {error}", "extraInfo": details}
        Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
