"""Memory of one process by part, for every engine: arithmetic on a census, shown as it is done."""

from __future__ import annotations

from dataclasses import dataclass

from orpo_dist.base.console import count
from orpo_dist.engines.engine import Engine
from orpo_dist.planning.census import Census

GIB = 2**30

# Optimizer state per parameter in bytes, by the beginning of its name; others count as Adam.
MOMENTS = {"sgd": 0, "adafactor": 0.01, "rmsprop": 4, "adagrad": 4, "lion": 4, "ademamix": 12}
ADAM = 8
EIGHT_BIT = 1 / 4 + 1 / 256  # of a state in fp32: a byte each, and an fp32 scale per 256
# Optimizers whose step is one kernel on a GPU, without temporaries; AdamW is fused there.
FUSED = ("adamw_torch", "adamw_torch_fused")

BUCKET = 50_000_000  # numbers: reduce_bucket_size of the presets zero1 and zero2
LIVE = 1_000_000_000  # numbers: DeepSpeed's stage3_max_live_parameters

# Not to be had by arithmetic. GPU: the CUDA context with its libraries, and NCCL's channels.
CONTEXT_GIB, NCCL_GIB = 0.7, 0.6
LIBRARIES_GIB = 0.65  # a CPU process with torch and transformers, before it holds a model
FRAGMENTED = 0.05  # of activations and buffers, which come and go
# On a CPU the C library finds fewer of the freed blocks again once gradients lie between them;
# measured by benchmarks/plan_memory.py --measure resident.
FRAGMENTED_CPU, FRAGMENTED_CPU_ACCUMULATING = 0.1, 0.45


@dataclass(frozen=True)
class Part:
    """One line of the arithmetic. where: device or host."""

    name: str
    bytes: float
    how: str
    where: str = "device"


@dataclass(frozen=True)
class Setting:
    """What memory depends on beside the model. world: processes. accumulates: a step has several
    micro-batches. activations: bytes of a micro-batch. reduces_once: as ``engine.reduces_once``.
    """

    engine: Engine
    world: int
    accumulates: bool
    activations: float
    optimizer: str = "adamw_torch"
    gpu: bool = True
    reduces_once: bool = True


def moments(optimizer: str) -> float:
    """Bytes of optimizer state per parameter in fp32."""
    whole = MOMENTS.get(optimizer.removeprefix("paged_").partition("_")[0], ADAM)
    return whole * EIGHT_BIT if is_8bit(optimizer) else whole


def is_8bit(optimizer: str) -> bool:
    """Whether an optimizer keeps its state in blocks of 8-bit numbers."""
    return "8bit" in optimizer


def is_paged(optimizer: str) -> bool:
    """Whether a GPU may move an optimizer's state to the host where its memory is full."""
    return optimizer.startswith("paged_")


def _state(census: Census, setting: Setting) -> Part:
    """What an optimizer keeps that sees the weights as they are."""
    optimizer, each = setting.optimizer, moments(setting.optimizer)
    where, how = "device", f"{count(census.trains)} × {each:.3g} B"
    if is_8bit(optimizer):
        size = each * (census.trains - census.embedded)
        size += each / EIGHT_BIT * census.embedded
        if census.embedded:
            how = f"{count(census.trains - census.embedded)} × {each:.3g} B, embeddings "
            how += f"{count(census.embedded)} × {each / EIGHT_BIT:g} B"
    else:  # in the precision of the weights
        size = each / 4 * census.grad_bytes
        how = f"{count(census.trains)} × {size / max(1, census.trains):.3g} B"
    if is_paged(optimizer) and setting.gpu:
        where, how = "host", f"{how}; paged: on the device as far as there is room"
    return Part("optimizer", size, how, where)


def parts(census: Census, setting: Setting) -> list[Part]:
    """The parts of one process's memory; those ``where`` host are of its share of a machine."""
    engine = setting.engine
    if engine.deepspeed:
        states, grads, step = _zero(census, setting)
    elif engine.name == "fsdp2":
        states, grads, step = _fsdp2(census, setting)
    else:
        states, grads, step = _replicated(census, setting)
    # With one micro-batch gradients grow while activations shrink; with several both are whole.
    kept = grads.bytes if setting.accumulates else 0.0
    working = max(setting.activations + kept, grads.bytes + step)
    temporary = working - grads.bytes
    if temporary <= 0:
        temporary, how = 0.0, "gone when the gradients are whole"
    elif setting.activations + kept >= grads.bytes + step:
        how = "traced: one micro-batch, forward and backward"
        how += "" if setting.accumulates else ", less what gradients take after it"
    else:
        how = "temporaries of the optimizer's step, larger than the micro-batch"
    found = [*states, grads, Part("activations", temporary, how)]
    return [*found, *_overhead(found, setting)]


def _overhead(found: list[Part], setting: Setting) -> list[Part]:
    moving = sum(p.bytes for p in found if p.name in ("activations", "buffers"))
    fixed, what = LIBRARIES_GIB, "torch and transformers themselves"
    lost = FRAGMENTED_CPU_ACCUMULATING if setting.accumulates else FRAGMENTED_CPU
    if setting.gpu:
        lost = FRAGMENTED
        fixed, what = CONTEXT_GIB + NCCL_GIB * (setting.world > 1), "CUDA context, NCCL"
    return [
        Part("fragmentation", lost * moving, f"{lost:.0%} of activations and buffers: assumed"),
        Part("libraries", fixed * GIB, f"{what}: assumed"),
    ]


def _temporaries(census: Census, setting: Setting, share: float) -> float:
    """Of an optimizer's step: a root of the second moment, for all tensors at once on a GPU."""
    if setting.gpu and (setting.optimizer in FUSED or is_8bit(setting.optimizer)):
        return 0.0
    return 4 * share if setting.gpu else 8 * min(share, census.largest)


def _replicated(census: Census, setting: Setting) -> tuple[list[Part], Part, float]:
    """single and ddp: every process holds all of it."""
    how = f"{count(census.total)} parameters"
    if census.quantised:
        how = f"{count(census.quantised)} × {census.quantised_bytes / census.quantised:.3g} B, "
        how += f"{count(census.total - census.quantised)} others"
    states = [
        Part("weights", census.plain_bytes + census.quantised_bytes, how),
        _state(census, setting),
    ]
    if setting.engine.name == "ddp" and setting.accumulates:
        how = "DDP's buckets; gradients move into them with the last micro-batch"
        states.append(Part("buffers", census.grad_bytes, how))
    grads = Part("gradients", census.grad_bytes, f"{count(census.trains)} that train")
    return states, grads, _temporaries(census, setting, census.trains)


def _zero(census: Census, setting: Setting) -> tuple[list[Part], Part, float]:
    """DeepSpeed: weights in the computing precision beside fp32 ones in the optimizer's shard."""
    engine, ranks, half = setting.engine, setting.world, census.half
    stage = int(engine.name[-1])
    cut = f" / {ranks}"
    share = census.trains / ranks
    state = 4 + moments(setting.optimizer)
    off = engine.offload != "none"
    where = "host" if off else "device"
    host_weights = stage == 3 and off
    weights = Part(
        "weights",
        census.cast_bytes / (ranks if stage == 3 else 1),
        f"{count(census.total)} × {census.cast_bytes / census.total:.3g} B" + cut * (stage == 3),
        "host" if host_weights else "device",
    )
    optimizer = Part(
        "optimizer",
        state * share + (4 * share if off else 0),
        f"{count(census.trains)} × {state + 4 * off:.3g} B{cut}",
        where,
    )
    # Stage 1 adds micro-batches up where backward leaves them; the others in fp32, in the shard.
    each, held = (half, census.trains) if stage == 1 else (4, share)
    grads = Part(
        "gradients",
        0.0 if off else each * held,
        "on the host" if off else f"{count(census.trains)} × {each} B" + cut * (stage > 1),
    )
    copied = 0 if stage == 2 else 4 * share  # its shard is what the optimizer reads
    step = 0.0 if off else copied + _temporaries(census, setting, share)
    return [weights, optimizer, _zero_buffers(census, setting, stage)], grads, step


def _zero_buffers(census: Census, setting: Setting, stage: int) -> Part:
    half = census.half
    sent = 2 * half + (4 if half < 4 else 0)  # two buckets, and one in fp32 on its way
    if stage == 3:
        live = min(LIVE, census.total) / census.total * census.cast_bytes
        reduce = sent * min(census.trains, max(census.hidden**2, census.largest))
        return Part("buffers", live + reduce, "gathered weights (at most 1B numbers), 2 buckets")
    how = f"2 buckets of {count(BUCKET)} × {half} B" + ", one in fp32" * (half < 4)
    return Part("buffers", sent * BUCKET, how)


def _fsdp2(census: Census, setting: Setting) -> tuple[list[Part], Part, float]:
    """FSDP2: shards as loaded; whole layers in the computing precision while they compute."""
    ranks, half = setting.world, census.half
    share, state = census.trains / ranks, moments(setting.optimizer)
    where = "device" if setting.engine.offload == "none" else "host"
    held = census.plain_bytes + census.quantised_bytes
    states = [
        Part("weights", held / ranks, f"{count(census.total)} as loaded / {ranks}", where),
        Part("optimizer", state * share, f"{count(census.trains)} × {state:g} B / {ranks}", where),
        Part(
            "buffers",
            census.shared_cast_bytes
            + 3 * census.block_cast_bytes
            + census.block_trains * (half + 4),
            "embeddings and head, 3 layers gathered, gradients of one layer",
        ),
    ]
    grads = Part("gradients", 4 * share, f"{count(census.trains)} × 4 B / {ranks}")
    if setting.accumulates and setting.reduces_once:
        grads = Part(
            "gradients",
            4 * census.trains + 4 * share,
            f"{count(census.trains)} × 4 B whole until the last micro-batch, and a shard",
        )
    return states, grads, _temporaries(census, setting, share)
