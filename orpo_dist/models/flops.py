"""The arithmetic of a training step, from the sizes of a model's weights.

Only useful tokens count, prompts once; recomputed work does not count (PaLM, arXiv 2204.02311, B).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from orpo_dist.batching.steps import Work
from orpo_dist.models.experts import used_shares
from orpo_dist.scoring.model_config import number_of
from orpo_dist.upstream.deepspeed import whole_shape

logger = logging.getLogger("orpo_dist")

# How attentions call the projection that their heads' outputs go through.
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations of one training step, from the sizes of the weights.

    body, head: weights that a token, or a scored token, is multiplied with, of experts those that
    it is sent to; trainable_*: those that need a gradient. layers, width: of the attention (its
    mean width).
    """

    body: int
    head: int
    trainable_body: int
    trainable_head: int
    layers: int
    width: float

    def __call__(self, work: Work) -> float:
        """2 per weight forward, 2 for the gradient of its input, 2 for its own."""
        return (
            (4 * self.body + 2 * self.trainable_body) * work.tokens
            + (4 * self.head + 2 * self.trainable_head) * work.scored
            + 12 * self.layers * self.width * work.seen
        )


def model_flops(core: Any) -> ModelFlops | None:
    """For a transformers model; None where the weights do not tell (quantised, no heads).

    A figure for the log: a model of an unknown build is no reason to stop.
    """
    try:
        return _count(core)
    except Exception as error:  # whatever a class makes of being asked
        logger.info("no mfu: the arithmetic of %s is not known (%s)", type(core).__name__, error)
        return None


def _count(core: Any) -> ModelFlops | None:
    config, head = core.config.get_text_config(), core.get_output_embeddings()
    attention = _attention(core.get_decoder(), config)
    if head is None or attention is None or getattr(core, "is_quantized", False):
        return None
    shares = used_shares(core)

    def met(parameter: torch.nn.Parameter) -> int:
        return round(_size(parameter)[0] * shares.get(id(parameter), 1.0))

    inside = {id(parameter) for parameter in head.parameters()}
    outside = {id(parameter) for parameter in core.get_input_embeddings().parameters()} | inside
    body = [p for p in core.parameters() if id(p) not in outside and _size(p)[1] > 1]
    return ModelFlops(
        body=sum(map(met, body)),
        head=sum(_size(p)[0] for p in head.parameters()),
        trainable_body=sum(met(p) for p in body if p.requires_grad),
        trainable_head=sum(_size(p)[0] for p in head.parameters() if p.requires_grad),
        layers=attention[0],
        width=attention[1],
    )


def _attention(decoder: Any, config: Any) -> tuple[int, float] | None:
    """Layers with attention, and its mean width over them: heads times the size of a head.

    From what goes into the output projections, whatever the config says; from the config where
    these go by other names; None where it has no heads, or other ones in every layer.
    """
    widths = []
    for module in decoder.modules():
        if type(module).__name__.endswith("Attention"):
            parts = dict(module.named_children())
            found = next((parts[name] for name in OUTPUTS if name in parts), None)
            if found is not None:  # nx: of transformers' Conv1D
                widths.append(getattr(found, "in_features", None) or found.nx)
    if widths:
        return len(widths), sum(widths) / len(widths)
    names = ("num_hidden_layers", "num_attention_heads", "head_dim", "hidden_size")
    layers, heads, size, width = (number_of(config, name) for name in names)
    if not layers or not heads or not (size or width):
        return None
    return layers, heads * (size or (width or 0) // heads)


def _size(parameter: torch.nn.Parameter) -> tuple[int, int]:
    """Elements and dimensions of a weight, also of one that DeepSpeed ZeRO-3 has partitioned."""
    shape = whole_shape(parameter)
    return shape.numel(), len(shape)
