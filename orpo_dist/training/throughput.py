"""How fast a run goes: tokens and pairs a second, padding avoided, and MFU where the peak is known.

Only useful tokens count, prompts once; recomputed work does not count (PaLM, arXiv 2204.02311, B).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback

from orpo_dist.batching.steps import Work
from orpo_dist.engines.peaks import peak_of
from orpo_dist.models.flops import ModelFlops


def peak_flops(device: torch.device, bf16: bool) -> float | None:
    """The device's dense peak for this precision, where a data sheet gives it."""
    if device.type != "cuda" or not bf16:
        return None
    return peak_of(torch.cuda.get_device_name(device))


class HostClock:
    """Sums up time spans as the process sees them: right where it waits for what it computes."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def begin(self) -> None:
        self._began = time.perf_counter()

    def end(self) -> None:
        self._seconds += time.perf_counter() - self._began

    def pop(self) -> float:
        """Seconds of all spans since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class GpuClock:
    """Sums up time spans as the GPU sees them, which runs after the process that gives it work.

    Marks are put between the kernels and read in ``pop`` alone, so that nobody waits before.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[Any, Any]] = []

    def begin(self) -> None:
        self._began = self._mark()

    def end(self) -> None:
        self._spans.append((self._began, self._mark()))

    def pop(self) -> float:
        """Seconds of all spans since the last call; waits for the end of the last."""
        spans, self._spans = self._spans, []
        if spans:
            spans[-1][1].synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000

    def _mark(self) -> Any:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark


class Throughput(TrainerCallback):
    """Clocks the steps of a log interval, optimizer included, evaluations and saving left out."""

    def __init__(
        self,
        flops: ModelFlops | None = None,
        peak: float | None = None,
        device: torch.device | None = None,
    ):
        """peak: FLOP/s of all ranks together. device: what computes the steps (None: the CPU)."""
        self.flops, self.peak = flops, peak
        self._clock = GpuClock() if device is not None and device.type == "cuda" else HostClock()
        self._reset()

    def _reset(self) -> None:
        self._work, self._pairs, self._steps = Work(), 0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.end()
        self._steps += 1

    def add(self, work: Work, pairs: int) -> None:
        """Count a step, over all ranks."""
        self._work += work
        self._pairs += pairs

    def pop(self) -> dict[str, float]:
        """Rates since the last call; empty where no step was finished."""
        work, pairs, steps, seconds = self._work, self._pairs, self._steps, self._clock.pop()
        self._reset()
        if not steps or not seconds:
            return {}
        found = {
            "seconds_per_step": seconds / steps,
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": work.tokens / seconds,
            "padding_avoided": 1 - work.tokens / work.padded,
        }
        if self.flops and self.peak:
            found["mfu"] = self.flops(work) / seconds / self.peak
        return found
