"""Which signal is the second one."""

from __future__ import annotations

import signal

import pytest

from orpo_dist.base import signals
from orpo_dist.base.signals import ECHO, Demands


@pytest.mark.parametrize(
    ("heard", "final"),
    [
        ([(0, signal.SIGINT)], False),
        ([(0, signal.SIGINT), (ECHO / 2, signal.SIGINT)], False),  # a terminal and a launcher
        ([(0, signal.SIGINT), (ECHO * 2, signal.SIGINT)], True),
        ([(0, signal.SIGINT), (ECHO * 2, signal.SIGTERM)], True),
        ([(0, signal.SIGUSR1), (ECHO * 2, signal.SIGTERM)], False),  # SLURM's time limit
        ([(0, signal.SIGTERM), (ECHO * 2, signal.SIGUSR1)], False),
    ],
)
def test_the_second_demand(
    heard: list[tuple[float, int]], final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    demands, found = Demands(), False
    for at, number in heard:
        monkeypatch.setattr(signals.time, "monotonic", lambda at=at: 100.0 + at)
        found = demands.final(number)
    assert found == final
