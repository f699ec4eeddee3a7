"""How long a step takes, from what it computes, sends and moves to the host.

Nothing overlaps here, so that times are on the long side; what they are for is comparing presets.
"""

from __future__ import annotations

from dataclasses import dataclass

from orpo_dist.batching.steps import Work
from orpo_dist.engines.engine import Engine
from orpo_dist.models.recomputing import KEEP_ATTENTION, Form, share
from orpo_dist.planning.census import Census
from orpo_dist.planning.skeleton import Method

# The GPU that is assumed for a size of memory in GB, by its name in peaks.PEAKS.
USUAL = {
    24: "RTX 4090", 32: "RTX 5090", 40: "A100", 48: "L40S", 80: "A100", 96: "GH200", 141: "H200",
    180: "B200", 270: "B300",
}  # fmt: skip
MFU = 0.4  # of the data sheet's bf16 peak, on useful tokens
CPU_FLOPS = 1.5e11  # two laptop cores in fp32

WITHIN, BETWEEN = 150.0, 25.0  # GB/s per GPU: NVLink, and 200 Gbit/s a GPU between machines
HOST, DISK = 20.0, 3.0  # GB/s per GPU: PCIe 4 with everyone busy, and one share of an NVMe disk
HOST_UPDATES = 5e8  # parameters a second and process, AdamW on the host
DEQUANTISING = {None: 1.0, "int8": 1.25, "int4": 1.3}  # of the arithmetic's time


@dataclass(frozen=True)
class Rates:
    """flops: useful FLOP/s of one process. bandwidth: GB/s it sends.

    tokens: a measured rate, tokens a second and process without recomputation; wins over flops.
    source: where these come from, in words.
    """

    flops: float
    bandwidth: float
    tokens: float | None = None
    source: str = ""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step by cause."""

    computing: float
    recomputing: float
    sending: float
    offloading: float
    sent_gb: float

    @property
    def seconds(self) -> float:
        return self.computing + self.recomputing + self.sending + self.offloading


def step_time(
    census: Census,
    method: Method,
    engine: Engine,
    ranks: int,
    micro_batches: int,
    reduces_once: bool,
    work: Work,
    checkpointing: Form,
    rates: Rates,
    sequence: int = 1,
) -> StepTime:
    """work: of the step, over all ranks. reduces_once: as ``engine.reduces_once``. sequence: ranks
    that share each."""
    slower = DEQUANTISING[method.quantization]
    mine = work * (1 / ranks)
    again = share(checkpointing, census.layers)
    if rates.tokens is not None:
        computing = mine.tokens / rates.tokens
        recomputing = computing / 3 * again
    else:
        assert census.flops is not None
        computing = slower * census.flops(mine) / rates.flops
        forward = 2.0 * census.flops.body * mine.tokens
        if checkpointing != KEEP_ATTENTION:
            forward += 4 * census.flops.layers * census.flops.width * mine.seen
        recomputing = slower * forward / rates.flops * again
    sent = sent_bytes(census, engine, micro_batches, reduces_once) * (ranks - 1) / ranks
    sent += exchanged_bytes(census, mine.tokens, again) * (sequence - 1) / sequence
    return StepTime(
        computing,
        recomputing,
        sent / 1e9 / rates.bandwidth,
        _offloading(census, engine, ranks, micro_batches),
        sent / 1e9,
    )


def sent_bytes(census: Census, engine: Engine, micro_batches: int, reduces_once: bool) -> float:
    """What one process sends in a step, up to (N - 1) / N, as ring algorithms do.

    Gradients are reduced in fp32, once a step or with every micro-batch (``reduces_once``). Engines
    that shard weights gather them twice for every micro-batch, ZeRO-1 and -2 once a step.
    """
    sent = 4.0 * census.trains * (1 if reduces_once else micro_batches)
    if engine.name == "single":
        return 0.0
    if engine.name == "ddp":
        return 2.0 * census.grad_bytes
    if engine.shards_weights:
        return sent + 2.0 * micro_batches * census.cast_bytes
    return sent + census.half * census.trains


def exchanged_bytes(census: Census, tokens: float, again: float) -> float:
    """What a rank sends around attention for so many tokens of its own, up to (P - 1) / P.

    Queries, keys, values and outputs, each as wide as the model (fewer key heads send less), in
    forward and backward, and once more in the share of the layers that are recomputed.
    """
    return census.half * 4.0 * census.hidden * census.layers * tokens * (2 + again)


def _offloading(census: Census, engine: Engine, ranks: int, micro_batches: int) -> float:
    if engine.offload == "none":
        return 0.0
    share = census.trains / ranks
    moved = census.half * share * (micro_batches + 1)
    if engine.shards_weights:
        moved += 2 * micro_batches * census.cast_bytes / ranks
    seconds = moved / 1e9 / HOST + share / HOST_UPDATES
    if engine.offload == "nvme":
        read = 2 * micro_batches * census.cast_bytes / ranks + 2 * 12 * share
        seconds += read / 1e9 / DISK
    return seconds
