"""Prefix-shared attention over packed pairs, through transformers' attention interface.

Registered beside ``sdpa`` and ``eager``, so that every model family that uses the interface works
unpatched. Which pairs a sequence holds travels as the forward kwarg ``orpo_segments``; without it
a call behaves exactly like the implementation that the model had before. ``orpo_varlen`` besides
it asks for the variable-length kernel where that can run, else SDPA goes pair by pair.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from orpo_dist.packing import Segments
from orpo_dist.varlen import VarlenLayout, can_run, varlen_attention

PREFIX = "orpo_packed_"
FORMER = ("sdpa", "eager")

_packed_forward: ContextVar[bool] = ContextVar("packed_forward", default=False)


@contextlib.contextmanager
def no_masks() -> Iterator[None]:
    """Within it models build no attention mask: packed attention needs none."""
    token = _packed_forward.set(True)
    try:
        yield
    finally:
        _packed_forward.reset(token)


def use_packed_attention(model: Any) -> None:
    """Let the model's attention understand ``orpo_segments``. Raises where it cannot be set."""
    former = model.config._attn_implementation
    if not str(former).startswith(PREFIX):
        model.set_attn_implementation(PREFIX + ("eager" if former == "eager" else "sdpa"))


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Attention of packed pairs. query: (1, H, T, D); key, value: (1, H or fewer, T, D).

    Prompt and chosen answer attend causally to themselves; the rejected answer attends to the
    prompt and, causally, to itself. Returns (1, T, H, D).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    # split, not slices: its gradient is one concatenation instead of a full-size zero per slice
    two = [size for p, c, r in segments for size in (p + c, r)]
    three = [size for segment in segments for size in segment]
    queries, keys, values = query.split(two, 2), key.split(three, 2), value.split(three, 2)
    outputs = []
    for number in range(len(segments)):
        prompt, chosen, rejected = 3 * number, 3 * number + 1, 3 * number + 2
        for which, answer in ((0, chosen), (1, rejected)):
            outputs.append(
                _attend(
                    queries[2 * number + which],
                    torch.cat([keys[prompt], keys[answer]], 2),
                    torch.cat([values[prompt], values[answer]], 2),
                    scaling,
                    softcap,
                    sliding_window,
                )
            )
    return torch.cat(outputs, 2).transpose(1, 2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention, the last query aligned with the last key. All (1, H, *, D)."""
    rows, columns = query.shape[2], key.shape[2]
    window = columns if window is None else window
    if softcap is None and rows == columns <= window:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    row = torch.arange(columns - rows, columns, device=query.device)[:, None]
    column = torch.arange(columns, device=query.device)
    visible = (column <= row) & (row - column < window)
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value, visible, scale=scaling)
    scores = torch.tanh(query @ key.transpose(2, 3) * scaling / softcap) * softcap
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def _implementation(former: str) -> Any:
    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        orpo_segments: Segments | None = None,
        orpo_varlen: VarlenLayout | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if orpo_segments is None:
            if former == "eager":
                plain = sys.modules[type(module).__module__].eager_attention_forward
            else:
                plain = AttentionInterface()[former]
            return plain(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        softcap, window = kwargs.get("softcap"), kwargs.get("sliding_window")
        if orpo_varlen is not None and can_run(query, softcap):
            return varlen_attention(query, key, value, orpo_varlen, scaling, window), None
        return packed_attention(query, key, value, orpo_segments, scaling, softcap, window), None

    return attention


def _mask(former: str) -> Any:
    def mask(*args: Any, **kwargs: Any) -> Any:
        if _packed_forward.get():
            return None
        return AttentionMaskInterface()[former](*args, **kwargs)

    return mask


for _former in FORMER:
    AttentionInterface.register(PREFIX + _former, _implementation(_former))
    AttentionMaskInterface.register(PREFIX + _former, _mask(_former))
