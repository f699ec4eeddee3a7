"""Which signal is the second one."""

from __future__ import annotations

import os
import signal
import threading

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


def test_every_signal_is_heard_by_its_number() -> None:
    """By the thread, also while the main thread is deaf."""
    heard: list[int] = []
    both = threading.Event()

    def hear(number: int) -> None:
        heard.append(number)
        if len(heard) == 2:
            both.set()

    former = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGUSR1, signal.SIGUSR2)}
    stop = signals.hear_signals(hear)
    try:
        for number in former:
            os.kill(os.getpid(), number)
        assert both.wait(10)
    finally:
        stop()
        for number, handler in former.items():
            signal.signal(number, handler)
    assert heard == list(former)
