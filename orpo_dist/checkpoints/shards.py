"""What this rank holds of weights and optimizer state, as ranges of parameters, on every engine.

A ``Shard`` is live: what is written into it trains. Here alone engines are asked where they keep
what; whoever saves or loads sees ranges.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from orpo_dist.engines.runtime import running_engine
from orpo_dist.upstream import deepspeed
from orpo_dist.upstream.torch import plain_name, scale_and_steady, set_scale


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
        with deepspeed.whole_groups(self.zero):
            yield


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
    trained = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    if name.startswith("zero"):
        return _zero(optimizer, trained)
    shards = [
        Shard(name, _first_number(p), _local(p.detach()).view(-1))
        for name, p in trained.items()
        if _local(p).numel() > 0  # fewer rows than ranks
    ]
    sizes = {name: p.numel() for name, p in trained.items()}
    return Holding(optimizer, shards, dict(trained), sizes, replicated=name in ("single", "ddp"))


def _zero(zero: Any, trained: Mapping[str, Any]) -> Holding:
    """ZeRO: parts of many parameters lie in one flat tensor, which the optimizer updates."""
    names = {id(p): name for name, p in trained.items()}
    shards, keys = [], {}
    for piece in deepspeed.pieces(zero):
        name = names[id(piece.parameter)]
        keys[name] = piece.key
        if piece.weight is not None:
            shards.append(Shard(name, piece.start, piece.weight, piece.offset))
    sizes = {name: deepspeed.whole_size(p) for name, p in trained.items()}
    return Holding(zero.optimizer, shards, keys, sizes, zero=zero)


def publish(held: Holding) -> None:
    """Let the weights that compute follow those that the optimizer updates; all ranks together."""
    if held.zero is not None:
        deepspeed.publish(held.zero)


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that FSDP2 has dealt out; any other as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_number(tensor: Tensor) -> int:
    """Where in the flattened tensor this rank's part begins; FSDP2 deals out rows."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        return 0
    assert list(tensor.placements) == [Shard(0)], tensor.placements
    rows, mesh = tensor.shape[0], tensor.device_mesh
    first = min(rows, mesh.get_local_rank() * -(-rows // mesh.size()))  # as torch.chunk cuts them
    return first * (tensor.numel() // rows) if rows else 0


def loss_scale(zero: Any, scaler: Any) -> dict[str, float] | None:
    """The scale of an fp16 loss, and for how many steps nothing has overflowed; None without one.

    zero: DeepSpeed's optimizer, or None. scaler: accelerate's, or None.
    """
    found = None
    if zero is not None:
        found = deepspeed.scale_and_steady(zero)
    elif scaler is not None:
        found = scale_and_steady(scaler)
    return found and {"scale": found[0], "steady": found[1]}


def set_loss_scale(zero: Any, scaler: Any, saved: dict[str, float] | None) -> None:
    """Go on with a scale from ``loss_scale``, where this run has one too."""
    if saved is None:
        return
    now = saved["scale"], int(saved["steady"])
    if zero is not None:
        deepspeed.set_scale(zero, *now)
    elif scaler is not None:
        set_scale(scaler, *now)
