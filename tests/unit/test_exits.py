"""How a process ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.launching import finish, start

# A library that aborts while it is torn down, as C++ does with a thread that is still running.
SCRIPT = """
import atexit, ctypes, sys, threading, time
from orpo_dist.exits import leave

libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)
atexit.register(lambda: print("python's goodbye"))
threading.Thread(target=lambda: (time.sleep(0.3), print("thread over"))).start()
print("buffered", end=" ")
leave(85)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="registers with glibc")
@pytest.mark.parametrize(("environment", "code"), [({"RANK": "1"}, 85), ({}, -6)])
def test_a_rank_keeps_its_exit_code_whatever_libraries_do(
    environment: dict[str, str], code: int, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found, output, errors = finish(start([sys.executable, str(script)], **environment), 60)
    assert found == code, errors
    assert output == "buffered thread over\npython's goodbye\n"
