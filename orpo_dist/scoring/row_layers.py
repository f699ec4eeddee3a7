"""Gives the layers of a model that need whole rows a forward that goes row by row (``rows``)."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from orpo_dist.scoring.head import FORMER
from orpo_dist.scoring.masks import PackedMask, Unpackable, is_packing, packing
from orpo_dist.scoring.rows import Rows

# Classes of transformers; the proof sees what is not among them.
STATEFUL = re.compile(
    r"(GatedDeltaNet|DeltaAttention|TextLinearAttention|LightningAttention|ShortConv|Mixer"
    r"|MambaLayer|RecurrentBlock)$"
)


def stateful_layers(backbone: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The layers of a model that need rows."""
    for module in backbone.modules():
        # Llama 4 scales queries where there is no rope, by a position that it counts itself.
        counts = vars(module).get("attn_temperature_tuning") and not module.use_rope
        if counts or STATEFUL.search(type(module).__name__):
            yield module


def teach_rows(backbone: torch.nn.Module) -> None:
    """Let those layers take ``orpo_rows`` and go row by row then."""
    for layer in stateful_layers(backbone):
        former = vars(layer).get("forward")  # of accelerate's hooks, say
        if not hasattr(former, FORMER):
            layer.forward = types.MethodType(_by_rows(layer, former), layer)


def forget_rows(backbone: torch.nn.Module) -> None:
    """Undo ``teach_rows``."""
    for layer in stateful_layers(backbone):
        if hasattr(taught := vars(layer).get("forward"), FORMER):
            del layer.forward
            if (former := getattr(taught, FORMER)) is not None:
                layer.forward = former


def _by_rows(layer: torch.nn.Module, former: Any) -> Any:
    @functools.wraps(type(layer).forward)
    def forward(self: Any, *args: Any, orpo_rows: Rows | None = None, **kwargs: Any) -> Any:
        plain = former or functools.partial(type(self).forward, self)
        if orpo_rows is None:
            if is_packing():
                raise Unpackable("does not hand arguments on to layers that need whole rows")
            return plain(*args, **kwargs)
        with packing(None):  # within a row nothing is packed
            output = plain(
                *(_in_rows(value, orpo_rows) for value in args),
                **{name: _in_rows(value, orpo_rows) for name, value in kwargs.items()},
            )
        if isinstance(output, tuple):
            return (orpo_rows.gathered(output[0]), *(None for _ in output[1:]))
        return orpo_rows.gathered(output)

    setattr(forward, FORMER, former)
    return forward


def _in_rows(value: Any, rows: Rows) -> Any:
    """An argument of a layer, as it is for rows: what belongs to tokens goes with them."""
    if isinstance(value, PackedMask):
        return replace(value, segments=((0, rows.cells.shape[1], 0),), varlen=None)
    if isinstance(value, tuple):
        return tuple(_in_rows(part, rows) for part in value)
    if isinstance(value, Tensor) and value.shape[:2] == (1, len(rows.home)):
        # Two dimensions and not whole numbers: a mask of padding, of which a row sees nothing.
        return rows.spread(value) if value.dim() > 2 or value.dtype == torch.int64 else None
    return value
