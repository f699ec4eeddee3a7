"""What this rank holds of weights and optimizer state, as ranges of parameters, on every engine.

A ``Shard`` is live: what is written into it trains. Here alone DeepSpeed and FSDP2 are asked where
they keep what; whoever saves or loads sees ranges.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from orpo_dist.engines.runtime import running_engine


@dataclass(frozen=True)
class Shard:
    """A range of a parameter that trains, from number ``start`` of the flattened one on.

    weight: (n,), as precise as the optimizer keeps them. offset: where the range begins in tensors
    of the optimizer's state; None where those hold this range alone.
    """

    name: str
    start: int
    weight: Tensor
    offset: int | None = None

    def of(self, state: Tensor) -> Tensor:
        """(n,): this range of a tensor of the optimizer's state."""
        if self.offset is None:
            return _local(state).view(-1)
        return state.narrow(0, self.offset, self.weight.numel())


@dataclass(frozen=True)
class Holding:
    """All that this rank holds.

    optimizer: the one that computes, inside the engine's. keys: for every parameter that trains,
    on whatever rank it lies, the tensor under which the optimizer keeps its state; DeepSpeed has
    one for many parameters. sizes: how many numbers every parameter has. replicated: whether all
    ranks hold the same. zero: DeepSpeed's optimizer, if any.
    """

    optimizer: Any
    shards: list[Shard]
    keys: dict[str, Tensor]
    sizes: dict[str, int]
    replicated: bool = False
    zero: Any = None

    def state(self, name: str) -> dict[str, Any]:
        """What the optimizer keeps for a parameter (for all of its key); empty before a step."""
        return self.optimizer.state.get(self.keys[name], {})

    @property
    def elementwise(self) -> bool:
        """Whether every number of the state belongs to a weight, so that it can be cut as weights.

        The rows and columns of Adafactor, and blocks of 8-bit optimizers, do not.
        """
        return all(
            not isinstance(value, Tensor) or is_count(kind, value, key) or value.shape == key.shape
            for key in self.keys.values()
            for kind, value in self.optimizer.state.get(key, {}).items()
        )

    @contextlib.contextmanager
    def groups(self) -> Iterator[None]:
        """Within it, ``optimizer.state_dict()`` works (ZeRO-3 takes its tensors out of groups)."""
        partial = running_zero3(self.zero)
        if partial:
            self.zero._set_fp32_optimizer_param_groups()
        try:
            yield
        finally:
            if partial:
                self.zero._clear_fp32_optimizer_param_groups()


def is_count(kind: str, value: Any, key: Tensor) -> bool:
    """Whether an entry of the state is one number for all weights of its key, such as a step."""
    if not isinstance(value, Tensor):
        return isinstance(value, int | float)
    return value.numel() == 1 and (kind == "step" or value.shape != key.shape)


def holding(engine: Any, model: Any, optimizer: Any) -> Holding:
    """What this rank holds of a prepared model.

    engine: the model as prepared; model: the one inside; optimizer: as prepared.
    """
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    name = running_engine(engine)
    trained = {_plain(name): p for name, p in model.named_parameters() if p.requires_grad}
    if name == "zero3":
        return _zero3(optimizer, trained)
    if name.startswith("zero"):
        return _zero12(optimizer, trained)
    shards = [
        Shard(name, _first_number(p), _local(p.detach()).view(-1))
        for name, p in trained.items()
        if _local(p).numel() > 0  # fewer rows than ranks
    ]
    sizes = {name: p.numel() for name, p in trained.items()}
    return Holding(optimizer, shards, dict(trained), sizes, replicated=name in ("single", "ddp"))


def _plain(name: str) -> str:
    """A parameter's name without the wrappers of torch.compile and activation checkpointing."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def _zero12(zero: Any, trained: Mapping[str, Any]) -> Holding:
    """ZeRO-1 and -2: a group of parameters is one flat tensor, of which every rank has a part."""
    names = {id(p): name for name, p in trained.items()}
    shards, keys = [], {}
    for number, group in enumerate(zero.bit16_groups):
        flat = zero.optimizer.param_groups[number]["params"][0]
        for parameter in group:
            name = names[id(parameter)]
            keys[name] = flat
            piece = parameter._hp_mapping  # None: nothing of it lies here
            if piece is not None:
                start, at = piece.lp_fragment_address.start, piece.hp_fragment_address.start
                shards.append(Shard(name, start, piece.hp_fragment.detach(), at))
    sizes = {name: p.numel() for name, p in trained.items()}
    return Holding(zero.optimizer, shards, keys, sizes, zero=zero)


def _zero3(zero: Any, trained: Mapping[str, Any]) -> Holding:
    """ZeRO-3: every parameter is cut evenly; a rank's parts of many lie in one flat tensor."""
    names = {id(p): name for name, p in trained.items()}
    rank, shards, keys = dist.get_rank(group=zero.dp_process_group), [], {}
    for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        offset = 0
        for parameter in group:
            name, length = names[id(parameter)], parameter.partition_numel()
            keys[name] = flat
            start = rank * length
            count = min(length, parameter.ds_numel - start)  # the last part may be filled up
            if count > 0:
                weight = flat.detach().narrow(0, offset, count)
                shards.append(Shard(name, start, weight, offset))
            offset += length
    sizes = {name: p.ds_numel for name, p in trained.items()}
    return Holding(zero.optimizer, shards, keys, sizes, zero=zero)


def publish(held: Holding) -> None:
    """Let the weights that compute follow those that the optimizer updates; all ranks together."""
    zero = held.zero
    if not running_zero3(zero):
        if zero is not None:
            zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()  # small parameters lie whole on every rank: gather them anew
    flats = zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
    with torch.no_grad():
        for computes, precise in flats:
            computes.copy_(precise)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
    zero.checkpoint_event_epilogue()


def running_zero3(zero: Any) -> bool:
    """Whether DeepSpeed's optimizer is that of stage 3; it has no common base with the others."""
    return zero is not None and type(zero).__name__ == "DeepSpeedZeroOptimizer_Stage3"


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that FSDP2 has dealt out; any other as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_number(tensor: Tensor) -> int:
    """Where in the flattened tensor this rank's part begins; FSDP2 deals out rows."""
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(tensor, DTensor):
        return 0
    assert list(tensor.placements) == [Shard(0)], tensor.placements
    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    rows = tensor.shape[0]
    return offset[0] * (tensor.numel() // rows) if rows else 0


def loss_scale(zero: Any, scaler: Any) -> dict[str, float] | None:
    """The scale of an fp16 loss, and for how many steps nothing has overflowed; None without one.

    zero: DeepSpeed's optimizer, or None. scaler: accelerate's, or None.
    """
    if zero is not None and zero.loss_scaler.dynamic:
        own = zero.loss_scaler
        return {"scale": own.cur_scale, "steady": own.cur_iter - own.last_overflow_iter - 1}
    if zero is None and scaler is not None:
        return {"scale": scaler.get_scale(), "steady": scaler.state_dict()["_growth_tracker"]}
    return None


def set_loss_scale(zero: Any, scaler: Any, saved: dict[str, float] | None) -> None:
    """Go on with a scale from ``loss_scale``, where this run has one too."""
    if saved is None:
        return
    if zero is not None and zero.loss_scaler.dynamic:
        own = zero.loss_scaler
        own.cur_scale = saved["scale"]
        own.last_overflow_iter = own.cur_iter - 1 - int(saved["steady"])
    elif zero is None and scaler is not None:
        now = {"scale": saved["scale"], "_growth_tracker": int(saved["steady"])}
        scaler.load_state_dict({**scaler.state_dict(), **now})
