"""Gives length-dependent ropes a forward that turns every sequence by its own length."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from orpo_dist.scoring.head import FORMER
from orpo_dist.scoring.switches import LENGTH_DEPENDENT, sides_now


def teach_ropes(core: torch.nn.Module) -> None:
    """Let length-dependent ropes of a model turn every sequence by its own length.

    Not those inside layers that are recomputed in the backward pass: the proof will see them.
    """
    inside = {
        id(module)
        for layer in core.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for module in layer.modules()
    }
    for module in core.modules():
        kinds = vars(module).get("rope_type")
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        known = any(kind in LENGTH_DEPENDENT for kind in kinds) and id(module) not in inside
        if known and not hasattr(vars(module).get("forward"), FORMER):
            module.forward = types.MethodType(_side_by_side(type(module)), module)


def _side_by_side(kind: Any) -> Any:
    @functools.wraps(kind.forward)
    def forward(self: Any, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        def turn(positions: Tensor) -> tuple[Tensor, ...]:
            _forget(self)
            turned = type(self).forward(self, x, positions, *args, **kwargs)
            return turned if isinstance(turned, tuple) else (turned,)

        found = sides_now()
        if found is None:
            turned = turn(position_ids)
        elif len(found.order):
            whole = position_ids if found.positions is None else found.positions
            each = [turn(whole[..., some]) for some in found.order.split(found.sizes)]
            turned = tuple(
                torch.cat(same, -2).index_select(-2, found.back) for same in zip(*each, strict=True)
            )
        else:
            each = [turn(torch.arange(size, device=x.device)[None]) for size in found.sizes]
            width = max(found.sizes)
            turned = tuple(
                torch.cat([F.pad(t, (0, 0, 0, width - t.shape[-2])) for t in same])[found.back]
                for same in zip(*each, strict=True)
            )
        return turned if len(turned) > 1 else turned[0]

    setattr(forward, FORMER, None)
    return forward


def _forget(rope: Any) -> None:
    """What dynamic ropes remember of longer sequences."""
    kinds = rope.rope_type
    for layers, kind in kinds.items() if isinstance(kinds, dict) else [("", kinds)]:
        if kind == "dynamic":
            prefix = layers and f"{layers}_"
            setattr(rope, f"{prefix}inv_freq", getattr(rope, f"{prefix}original_inv_freq"))
            setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)
