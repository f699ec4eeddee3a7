"""Prefix-shared attention over packed pairs, through transformers' attention interface.

Registered beside ``sdpa`` and ``eager``, so that every model family that uses the interface works
unpatched. Which pairs a sequence holds arrives as its mask (``masks``); with any other mask a call
behaves exactly like the implementation that the model had before.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from orpo_dist.scoring.masks import PackedMask, Unpackable, is_packing, mask_instead_of
from orpo_dist.scoring.sequence import over_heads
from orpo_dist.scoring.varlen import varlen_attention
from orpo_dist.upstream.hf_models import attention_of

PREFIX = "orpo_packed_"
FORMER = ("sdpa", "eager")

# What models give their attention besides, and no attention function of transformers looks at in
# training: windows are in the mask, and dropout is off.
WITHOUT_EFFECT = {
    "cache_position", "dropout", "layer_idx", "num_items_in_batch", "orpo_rows",
    "output_attentions", "output_hidden_states", "output_router_logits", "past_key_values",
    "position_embeddings", "position_ids", "return_dict", "sliding_window", "use_cache",
}  # fmt: skip


def use_packed_attention(model: Any) -> None:
    """Let the model's attention understand ``PackedMask``. Raises where it cannot be set."""
    former = attention_of(model.config)
    if not str(former).startswith(PREFIX):
        model.set_attn_implementation(PREFIX + ("eager" if former == "eager" else "sdpa"))


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: PackedMask,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of packed pairs. query: (1, H, T, D); key, value: (1, H or fewer, T, D).

    Prompt and chosen answer attend causally to themselves; the rejected answer attends to the
    prompt and, causally, to itself. sinks: (H,) a score of each head that takes its share of every
    softmax and adds nothing. Returns (1, T, H, D).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    # split, not slices: its gradient is one concatenation instead of a full-size zero per slice
    two = [size for p, c, r in mask.segments for size in (p + c, r)]
    three = [size for segment in mask.segments for size in segment]
    queries, keys, values = query.split(two, 2), key.split(three, 2), value.split(three, 2)
    outputs = []
    for number in range(len(mask.segments)):
        prompt, chosen, rejected = 3 * number, 3 * number + 1, 3 * number + 2
        for which, answer in ((0, chosen), (1, rejected)):
            asking = queries[2 * number + which]
            if not asking.shape[2]:
                continue
            seen, said = (torch.cat([x[prompt], x[answer]], 2) for x in (keys, values))
            visible = mask.visible(asking.shape[2], seen.shape[2], query.device)
            outputs.append(_attend(asking, seen, said, visible, scaling, softcap, sinks))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()  # some models take a view of it


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention to the visible keys (None: as many as queries, causally). All (1, H, *, D)."""
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, visible, is_causal=visible is None, scale=scaling
        )
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if visible is None:
        visible = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], 3)
    shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return shares[..., : key.shape[2]].to(value.dtype) @ value


def _implementation(former: str) -> Any:
    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | PackedMask | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        if isinstance(attention_mask, PackedMask):
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            return _packed(query, key, value, attention_mask, scaling, **kwargs), None
        if is_packing():
            raise Unpackable("gives its attention a mask of its own")
        if former == "eager":
            plain = sys.modules[type(module).__module__].eager_attention_forward
        else:
            plain = AttentionInterface()[former]
        return plain(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    return attention


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: PackedMask,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> Tensor:
    """By the kernel where it can run, else pair by pair. The names are those of transformers."""
    unknown = [
        name
        for name, value in others.items()
        if name not in WITHOUT_EFFECT and value is not None and value is not False
    ]
    if unknown or is_causal is False:
        what = ", ".join(unknown) or "is_causal=False"
        raise Unpackable(f"gives its attention {what}, which packing does not know")

    def attend(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        hardware = mask.hardware
        if mask.varlen is not None and mask.chunk is None and hardware.runs_kernel(query, softcap):
            return varlen_attention(
                query, key, value, mask.varlen, scaling, mask.window, sinks, hardware
            )
        return packed_attention(query, key, value, mask, scaling, softcap, sinks)

    if mask.sequence.size > 1:
        return over_heads(attend, mask.sequence, query, key, value, s_aux)
    return attend(query, key, value, s_aux)


def keep_apart() -> None:
    """Let packed attention stay outside of what is compiled: a graph holds no lists of pairs."""
    for former in FORMER:
        AttentionInterface.register(
            PREFIX + former, torch.compiler.disable(_implementation(former))
        )


for _former in FORMER:
    AttentionInterface.register(PREFIX + _former, _implementation(_former))
    AttentionMaskInterface.register(
        PREFIX + _former, mask_instead_of(AttentionMaskInterface()[_former])
    )
