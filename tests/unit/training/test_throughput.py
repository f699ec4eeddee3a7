"""Rates and padding avoided, by the clocks of a CPU and of a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orpo_dist.batching.steps import Work
from orpo_dist.models.flops import ModelFlops
from orpo_dist.training import throughput
from orpo_dist.training.throughput import Throughput, peak_flops


def test_rates_of_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    flops = ModelFlops(1000, 0, 1000, 0, 0, 0)
    clock: Any = Throughput(flops, peak=1e9)
    assert clock.pop() == {}
    for _ in range(2):
        clock.on_step_begin(None, None, None)
        now[0] += 0.25
        clock.add(Work(tokens=50, scored=20, padded=200), pairs=4)
        clock.on_step_end(None, None, None)
        now[0] += 8  # an evaluation: not a step's time
    found = clock.pop()
    assert found["seconds_per_step"] == 0.25
    assert (found["pairs_per_second"], found["tokens_per_second"]) == (16, 200)
    assert found["padding_avoided"] == 0.75
    assert found["mfu"] == pytest.approx(6000 * 200 / 1e9)
    assert clock.pop() == {}


def test_no_peak_is_claimed_for_a_cpu() -> None:
    assert peak_flops(torch.device("cpu"), bf16=True) is None


# --- the GPU's clock


def test_a_gpu_is_clocked_where_it_is_and_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that is given steps in no time and takes 100 ms for each; 1 s passes in between."""
    waits: list[float] = []
    queue = iter([0.0, 100.0, 1100.0, 1200.0, 2200.0, 2300.0])

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.at = next(queue)

        def synchronize(self) -> None:
            waits.append(self.at)

        def elapsed_time(self, other: Event) -> float:
            assert waits and other.at <= waits[-1], "read before it is known"
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock: Any = Throughput(ModelFlops(1000, 0, 1000, 0, 0, 0), 1e9, torch.device("cuda"))
    assert clock.pop() == {} and not waits
    for _ in range(3):
        clock.on_step_begin(None, None, None)
        clock.add(Work(tokens=50, scored=20, padded=200), pairs=4)
        clock.on_step_end(None, None, None)
    assert not waits
    found = clock.pop()
    assert waits == [2300.0]
    assert found["seconds_per_step"] == pytest.approx(0.1)
    assert found["tokens_per_second"] == pytest.approx(500)
    assert found["mfu"] == pytest.approx(6000 * 500 / 1e9)
    assert clock.pop() == {} and len(waits) == 1
