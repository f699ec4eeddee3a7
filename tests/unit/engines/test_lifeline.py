"""A process dies with its parent, told by the kernel or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

# A parent that starts a child, says its process id and sleeps.
PARENT = """
import os, subprocess, sys, time
from orpo_dist.engines.lifeline import announce_launcher
announce_launcher()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = """
import time
from orpo_dist.engines import lifeline
{}
lifeline.hold_on_to_launcher()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("before", ["", "lifeline._killed_by_kernel = lambda: False"])
def test_a_child_dies_with_its_parent(before: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD.format(before)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    gone, _ = psutil.wait_procs([child], timeout=10)
    if not gone:
        child.kill()
    assert gone


def test_a_parent_that_is_gone_already() -> None:
    code = CHILD.format("")
    environment = {**os.environ, "ORPO_LAUNCHER": "999999"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=30, check=False)
    assert ended.returncode == -signal.SIGKILL


def test_without_a_launcher_nothing_is_followed() -> None:
    code = CHILD.format("").replace("60", "0")
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
