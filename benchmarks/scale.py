"""How a run would scale to 8 … 4,096 GPUs, by the plan of its steps and a simple model of links.

    python benchmarks/scale.py --config FOLDER [--peft] [--lengths long] [--json out.json]

Nothing is measured: every step is dealt to its groups of ranks as a run deals it, the heaviest one
is waited for, and what is sent takes the time of the figures in ``planning/speed.py``. A group of
``sequence`` ranks shares its pairs' tokens (Ulysses, arXiv 2309.14509): all-to-all moves queries,
keys, values and the output of every layer, forward and backward. Gradients are reduced over all
ranks, in the order of machines, and overlap with nothing. So a figure is on the slow side; what it
is for is to compare shapes of a run, and to find where one stops scaling.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orpo_dist.batching.balance import deal_to_ranks, packing_cost
from orpo_dist.planning.census import Census, take_census
from orpo_dist.planning.skeleton import Method
from orpo_dist.planning.speed import BETWEEN, MFU, WITHIN

PER_MACHINE = 8
PEAK = 989e12  # of an H100, bf16
RANKS = (8, 32, 128, 512, 2048, 4096)
SEQUENCE = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Shape:
    """What of a model decides: all else is in its census. heads, keys: of attention, each ``size``
    wide; keys are those of keys and values. width: bytes of a number on its way."""

    census: Census
    heads: int
    keys: int
    size: int
    width: int = 2


@dataclass(frozen=True)
class Scaled:
    """Seconds of one step by cause, mean over steps. idle: of the computing, the share in which the
    mean rank waits for the heaviest group."""

    data: int
    sequence: int
    computing: float
    idle: float
    all_to_all: float
    gradients: float

    @property
    def seconds(self) -> float:
        return self.computing + self.all_to_all + self.gradients

    @property
    def efficiency(self) -> float:
        """The share of the time in which the mean rank computes."""
        return self.computing * (1 - self.idle) / self.seconds


def scaled(
    shape: Shape, lengths: np.ndarray, data: int, sequence: int, pairs: int, steps: int = 4
) -> Scaled:
    """A run on ``data`` groups of ``sequence`` ranks. lengths: (N, 3) of pairs to draw from.

    pairs: of one step and group, so that a group has as much to do on any number of groups.
    """
    draw = np.random.default_rng([data, sequence])
    computing, idle, moved = [], [], []
    for _ in range(steps):
        drawn = lengths[draw.integers(0, len(lengths), data * pairs)]
        loads, tokens = group_loads(shape, drawn, data, pairs)
        each = flops_per_cost(shape) / (MFU * PEAK) / sequence
        computing.append(loads.max() * each)
        idle.append(1 - loads.mean() / loads.max())
        moved.append(all_to_all_seconds(shape, int(tokens.max()), sequence))
    return Scaled(
        data, sequence, *map(statistics.fmean, (computing, idle, moved)),
        gradient_seconds(shape.census.grad_bytes, data * sequence),
    )  # fmt: skip


def group_loads(
    shape: Shape, lengths: np.ndarray, data: int, pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cost and tokens of every group, (data,) each, dealt as a step is."""
    costs = packing_cost(lengths, shape.census.hidden)
    dealt = deal_to_ranks(costs, data, pairs)
    sizes = lengths.sum(1)
    return (
        np.array([costs[one].sum() for one in dealt]),
        np.array([sizes[one].sum() for one in dealt]),
    )


def flops_per_cost(shape: Shape) -> float:
    """Of a token's forward and backward pass in the weights, and of as much in attention.

    Weights that do not train need no gradient of their own.
    """
    census = shape.census
    return 4.0 * census.active + 2.0 * min(census.trains, census.active)


def all_to_all_bytes(shape: Shape, tokens: int, sequence: int) -> float:
    """What one rank sends of a micro-batch of ``tokens``, all layers, forward and backward.

    A rank holds tokens / sequence of them; of what it has it keeps one part for itself. Where there
    are fewer keys than ranks, each is sent to as many as need it.
    """
    keys = max(shape.keys, sequence)
    numbers = (2 * shape.heads + 2 * keys) * shape.size * tokens / sequence
    away = (sequence - 1) / sequence
    return 2 * shape.census.layers * numbers * shape.width * away


def all_to_all_seconds(shape: Shape, tokens: int, sequence: int) -> float:
    """Within a machine over NVLink; of a group of several machines, what leaves one is slower."""
    sent = all_to_all_bytes(shape, tokens, sequence)
    if sequence <= PER_MACHINE:
        return sent / 1e9 / WITHIN
    leaves = (sequence - PER_MACHINE) / (sequence - 1)
    return sent / 1e9 * max(leaves / BETWEEN, (1 - leaves) / WITHIN)


def gradient_seconds(size: float, ranks: int) -> float:
    """An all-reduce of ``size`` bytes: within machines, and of a share each between them."""
    here = min(ranks, PER_MACHINE)
    machines = -(-ranks // PER_MACHINE)
    within = 2 * size * (here - 1) / here / 1e9 / WITHIN
    between = 2 * size / here * (machines - 1) / machines / 1e9 / BETWEEN
    return within + between


def shape_of(folder: str, peft: bool) -> Shape:
    from transformers import AutoConfig

    from orpo_dist import ORPOConfig

    found = AutoConfig.from_pretrained(folder)
    text = found.get_text_config()
    census = take_census(found, ORPOConfig(model=folder, peft=peft), Method(peft), "bf16")
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(census, text.num_attention_heads, text.num_key_value_heads, size)


def lengths_like(kind: str, count: int = 20_000) -> np.ndarray:
    """Lengths of pairs, (N, 3): as short as HH's, or as long as a document that is asked about."""
    draw = np.random.default_rng(0)
    middle, spread = {"hh": ([110, 28, 36], 0.85), "long": ([24_000, 400, 500], 0.5)}[kind]
    most = {"hh": 512, "long": 131_072}[kind]
    found = draw.lognormal(np.log(middle), spread, (count, 3))
    return np.clip(found, 2, most).astype(np.int64)


def table(rows: list[Scaled]) -> str:
    lines = [
        f"{'ranks':>6}{'data':>6}{'seq':>5}{'s/step':>9}{'idle':>7}{'all-to-all':>12}"
        f"{'gradients':>11}{'efficiency':>12}"
    ]
    for one in rows:
        lines.append(
            f"{one.data * one.sequence:>6}{one.data:>6}{one.sequence:>5}{one.seconds:>9.3f}"
            f"{one.idle:>7.1%}{one.all_to_all / one.seconds:>12.1%}"
            f"{one.gradients / one.seconds:>11.1%}{one.efficiency:>12.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--config", required=True, metavar="FOLDER", help="of a model's config.json"
    )
    parser.add_argument("--peft", action="store_true")
    parser.add_argument("--lengths", choices=("hh", "long"), default="hh")
    parser.add_argument("--pairs", type=int, help="of a step and group; default 64, long 1")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    shape, lengths = shape_of(options.config, options.peft), lengths_like(options.lengths)
    pairs = options.pairs or {"hh": 64, "long": 1}[options.lengths]
    rows = [
        scaled(shape, lengths, ranks // sequence, sequence, pairs * sequence, options.steps)
        for sequence in SEQUENCE
        for ranks in RANKS
        if ranks >= sequence and shape.heads % sequence == 0
    ]
    print(table(rows))
    if options.json:
        found: list[dict[str, Any]] = [
            {**asdict(one), "efficiency": one.efficiency} for one in rows
        ]
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
