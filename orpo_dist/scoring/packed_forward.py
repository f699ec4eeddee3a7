"""The forward that a model is taught, by which it scores packed batches.

It runs inside the model's own, so that every engine's hooks apply, and projects only predicted
positions, in chunks: the logits of a whole batch never exist.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import torch
from torch import Tensor

from orpo_dist.scoring.attention import use_packed_attention
from orpo_dist.scoring.head import forget_targets, teach_targets, token_logps
from orpo_dist.scoring.masks import packing
from orpo_dist.scoring.packing import PackedBatch
from orpo_dist.scoring.routing import balance
from orpo_dist.scoring.row_layers import forget_rows, stateful_layers, teach_rows
from orpo_dist.scoring.switches import turning
from orpo_dist.upstream.hf_models import takes_attention


def causal_model(model: Any) -> Any:
    """The transformers model itself, under an adapter if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(core: Any) -> Any:
    """The part of a model that comes before its head; the model itself where there is none."""
    if core.base_model is not core:
        return core.base_model
    embeddings = core.get_input_embeddings()  # some classes name their backbone wrongly
    return next(
        (c for c in core.children() if embeddings in c.modules() and c is not embeddings), core
    )


def why_not_packed(core: Any) -> str | None:
    """Why a model can be known not to pack, before trying."""
    if core.get_output_embeddings() is None or backbone(core) is core:
        return "has no separate backbone and vocabulary head"
    if "position_ids" not in inspect.signature(backbone(core).forward).parameters:
        return "takes no position_ids"
    if not takes_attention(core):  # setting it would only log a warning
        return "has attention of its own, not from transformers' interface"
    return None


def needs_rows(core: Any) -> bool:
    """Whether layers of a model need every answer as a row of its own."""
    return next(stateful_layers(backbone(core)), None) is not None


def teach_packing(core: Any) -> str | None:
    """Give the model a forward that scores packed batches; all other calls go the usual way.

    Returns why that cannot be, or None.
    """
    try:
        use_packed_attention(core)
    except (ValueError, KeyError, AttributeError) as error:
        return f"does not take attention from the interface ({error})".partition("\n")[0]
    plain = type(core).forward

    @functools.wraps(plain)  # generation reads the signature to know what the model takes
    def forward(self: Any, *args: Any, orpo_batch: Any = None, **kwargs: Any) -> Any:
        if orpo_batch is None:
            return plain(self, *args, **kwargs)
        return _packed_forward(self, orpo_batch)

    core.forward = types.MethodType(forward, core)
    teach_rows(backbone(core))
    teach_targets(core)
    return None


def forget_packing(core: Any, attention: str) -> None:
    del core.forward  # the class's own again
    forget_rows(backbone(core))
    forget_targets(core)
    core.set_attn_implementation(attention)


def _packed_forward(self: Any, orpo_batch: PackedBatch) -> Tensor | tuple[Tensor, Tensor]:
    asked: dict[str, Any] = {}
    if orpo_batch.rows is not None:
        asked["orpo_rows"] = orpo_batch.rows
    if orpo_batch.routed is not None:
        asked["output_router_logits"] = True
    with packing(orpo_batch.mask), turning(orpo_batch.sides):
        output = backbone(self)(
            input_ids=orpo_batch.input_ids,
            # Without one, transformers reads positions back from the device to find sequences.
            attention_mask=torch.ones_like(orpo_batch.input_ids, dtype=torch.bool),
            position_ids=orpo_batch.position_ids,
            use_cache=False,
            **asked,
        )
    hidden = output.last_hidden_state[0]
    logps = token_logps(self, hidden[orpo_batch.sources], orpo_batch.targets, orpo_batch.hardware)
    if orpo_batch.routed is None:
        return logps
    whose, pairs = orpo_batch.routed, len(orpo_batch.weight)
    top_k, sequence = self.num_experts_per_tok, orpo_batch.sequence
    return logps, balance(output.router_logits, whose.pairs, whose.times, pairs, top_k, sequence)


def sequence_logps(model: Any, ids: Tensor, wanted: int, packed: bool) -> Tensor:
    """Log-probs (B, wanted) in fp32 or better of the last tokens of plain sequences (B, T).

    packed: the model has proved that its head can be run apart from its backbone (``Scorer``).
    """
    core, targets = causal_model(model), ids[:, -wanted:]
    if packed:
        states = backbone(core)(input_ids=ids, use_cache=False).last_hidden_state
        states = states[:, -wanted - 1 : -1]
        return token_logps(core, states.flatten(0, 1), targets.flatten()).view_as(targets)
    logits = model(input_ids=ids, use_cache=False).logits[:, -wanted - 1 : -1]
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return exact.log_softmax(-1).gather(2, targets[..., None])[..., 0]
