"""Mixtures of experts: how much of a model a token goes through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from orpo_dist.upstream.deepspeed import whole_shape

# How configs call the number of experts that a token is sent to.
USED = (
    "num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "num_experts_per_token",
    "top_k_experts",
)  # fmt: skip


def used_shares(core: Any) -> dict[int, float]:
    """By ``id`` of a parameter, the share of it that one token is multiplied with, where not all.

    Experts that every token goes through (shared ones) are not among them. Raises ``LookupError``
    where the config does not say how many experts a token is sent to.
    """
    found: dict[int, float] = {}
    used: float | None = None
    for experts, parameters in _routed(core):
        used = used or _used(core.config)
        found |= {id(parameter): min(1.0, used / experts) for parameter in parameters}
    return found


def _routed(core: nn.Module) -> Iterator[tuple[int, list[nn.Parameter]]]:
    """Modules that hold experts to choose from: how many, and their weights."""
    for path, module in core.named_modules():
        kind, own = type(module).__name__, list(module.parameters(recurse=False))
        if isinstance(module, nn.ModuleList) and path.endswith(".experts"):
            yield len(module), list(module.parameters())
        elif "Expert" in kind and "Shared" not in kind and own:
            counts = [getattr(module, name, None) for name in ("num_experts", "moe_num_experts")]
            yield next(filter(None, counts), whole_shape(own[0])[0]), own


def _used(config: Any) -> float:
    text = config.get_text_config()
    for part in (text, getattr(text, "ffn_config", None)):
        for name in USED:
            count = getattr(part, name, None)
            if isinstance(count, list | tuple):  # one a layer
                return sum(count) / len(count)
            if count is not None:
                return float(count)
    raise LookupError("experts of which a token meets an unknown number")
