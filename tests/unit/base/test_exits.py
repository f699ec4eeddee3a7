"""How a process ends."""

from __future__ import annotations

import signal
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launching import finish, listens_for, start, wait_until

# A library that aborts while it is torn down, as C++ does with a thread that is still running.
SCRIPT = """
import atexit, ctypes, sys, threading, time
from orpo_dist.base.exits import leave

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


LATE = """
import atexit, os, signal
from orpo_dist.base.exits import leave, recorded

atexit.register(lambda: os.kill(os.getpid(), signal.{name}))
leave(recorded(lambda: 3))
"""


@pytest.mark.parametrize("environment", [{"RANK": "1"}, {}])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_after_the_end_changes_nothing(
    name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(LATE.format(name=name))
    code, _, errors = finish(start([sys.executable, str(script)], **environment), 60)
    assert (code, errors) == (3, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_the_script_and_the_module_end_alike(name: str) -> None:
    """Signalled while modules load: both have the codes that the docs promise."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["orpo-dist"].split(":")
    as_script = f"import sys; from {module} import {function}; sys.exit({function}())"
    number = signal.Signals[name]
    for words in (["-c", as_script], ["-m", "orpo_dist"]):
        process = start([sys.executable, *words, "train", "--model", "none"])
        wait_until(lambda process=process: listens_for(process, signal.SIGTERM), process)
        process.send_signal(number)
        code, _, errors = finish(process, 60)
        assert code == (85 if name == "SIGUSR1" else 130)
        assert "Traceback" not in errors
