"""What a trainer's own loop does on the device: waits, the clock, the token budget."""

from __future__ import annotations

import math
import time
import warnings
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.gpu.lines import Case, Found, Options, Skip
from benchmarks.gpu.material import llama, smoke_rows, trainer, wait

GIB = 2**30


def cases(options: Options) -> dict[str, Case]:
    return {
        "waits of the host": partial(waits, options),
        "reported speed": partial(clock, options),
        "token budget against the plan": partial(budget, options),
    }


# --- waits


class Waits(TrainerCallback):
    """Counts what torch says of waits between the begin and the end of every step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._caught = warnings.catch_warnings(record=True)
        self._seen = self._caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)
        self.counts.append(sum("synchronizing" in str(w.message) for w in self._seen))


def waits(options: Options) -> Found:
    """Steps of one and of four micro-batches; what the three more add is theirs."""
    if options.device != "cuda":
        raise Skip("needs a GPU")
    found = {}
    for micro_batches in (1, 4):
        model, counted = llama(Options("cuda", True), "tiny", torch.float32), Waits()
        made = trainer(
            options, model, smoke_rows(64), batch_size=2, gradient_accumulation=micro_batches,
            max_steps=4, logging_steps=100,
        )  # fmt: skip
        made.add_callback(counted)
        made.train()
        found[micro_batches] = min(counted.counts[1:])
    each = (found[4] - found[1]) / 3
    return Found(
        each == 0,
        f"{each:.1f} a micro-batch, {found[1] - each:.0f} a step beside them",
        {"per_micro_batch": each, "per_step": found[1] - each},
    )


# --- the clock


class Clock(TrainerCallback):
    """Waits for the device at the ends of the steps that one log line speaks of."""

    def __init__(self, options: Options, first: int) -> None:
        self.options, self.first, self.logs = options, first, {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.first:
            wait(self.options)
            self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            wait(self.options)
            self.seconds = (time.perf_counter() - self.began) / (state.max_steps - self.first)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.global_step == state.max_steps and "tokens_per_second" in logs:
            self.logs = dict(logs)


def clock(options: Options) -> Found:
    """The log's seconds a step over steps 11 to 20 beside a clock that waits for the device."""
    watch = Clock(options, 10)
    made = trainer(
        options, llama(options, "1B", torch.float32), smoke_rows(96), batch_size=8, max_steps=20,
        logging_steps=10,
    )  # fmt: skip
    made.add_callback(watch)
    made.train()
    reported, rate = watch.logs["seconds_per_step"], watch.logs["tokens_per_second"]
    true = rate * reported / watch.seconds
    return Found(
        abs(reported / watch.seconds - 1) < 0.1,
        f"{rate:.0f} tokens/s reported, {true:.0f} by the clock",
        {"reported": rate, "clock": true},
    )


# --- the budget


def budget(options: Options) -> Found:
    """The limit found at start by trying, beside what the plan takes to fit in this memory."""
    if options.device != "cuda":
        raise Skip("needs a GPU: on a CPU the budget is fixed")
    from orpo_dist import ORPOConfig
    from orpo_dist.planning.estimate import Estimator, Machine, device_gib

    pairs = 512
    rows = [{"prompt": "p" * 2000, "chosen": "c" * 2000, "rejected": "r" * 2000}] * pairs
    model = llama(options, "1B", torch.float32)
    made = trainer(
        options, model, rows, batch_size=pairs, max_tokens_per_microbatch="auto", max_steps=1
    )
    made.train()
    lengths = tuple(int(n) for n in made.train_plan.lengths[0])
    found, size = made.train_plan.token_budget, sum(lengths)
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    config = ORPOConfig(model="random", batch_size=pairs)
    estimator = Estimator(model.config, config, Machine(1, memory), lengths)
    step = pairs // 64  # every trial of the plan takes seconds
    planned = step * _most(
        lambda n: device_gib(estimator.parts("single", n * step, True)) <= memory, 64
    )
    if found is None and planned == pairs:
        return Found(True, f"no limit, found and planned, {pairs * size} tokens", {"found": None})
    found = found or pairs * size
    ratio = found / (planned * size)
    return Found(
        0.4 < ratio < 1.25,
        f"{found} tokens found, {planned * size} planned",
        {"found": found, "planned": planned * size},
    )


def _most(fits: Any, most: int) -> int:
    """The largest number that fits, by halving the interval; at least 1."""
    low, high = 1, most
    while low < high:
        middle = math.ceil((low + high) / 2)
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
