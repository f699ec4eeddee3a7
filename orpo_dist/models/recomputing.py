"""What is kept of a layer for the backward pass, and what is computed again there.

The forms of ``gradient_checkpointing``, from all kept to all computed again: memory for time. None
of them changes a number.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from orpo_dist.base.types import UserError
from orpo_dist.models.kinds import refuse_checkpointing
from orpo_dist.upstream.hf_models import Recomputed

# As the setting says it: False, True, "every:N" or "keep_attention".
Form = bool | str
KEEP_ATTENTION = "keep_attention"
FORMS: tuple[Form, ...] = (False, "every:4", "every:2", KEEP_ATTENTION, True)  # the cheapest first

# Operations that are attention as a whole: torch's, those of its variable-length kernel, of flash
# attention's own, and the one that a plan runs in their place.
ATTENTION = re.compile(r"scaled_dot_product\w*attention|varlen_attn|flash_attn|planned_attention")

LEAST_BYTES = 2**20  # of a tensor that goes to the host; smaller ones cost more than they free


def every(form: Form) -> int:
    """One layer in so many is computed again; 0: none is."""
    if isinstance(form, str) and form.startswith("every:"):
        return int(form.partition(":")[2])
    return int(bool(form))


def share(form: Form, layers: int) -> float:
    """The share of the layers that are computed again."""
    step = every(form)
    return math.ceil(layers / step) / layers if step else 0.0


def forms_of(core: nn.Module) -> tuple[Form, ...]:
    """The forms that a model has, the fastest first."""
    if not getattr(core, "supports_gradient_checkpointing", True):
        return (False,)
    one_by_one = next(numbered_layers(core), None) is not None
    return tuple(form for form in FORMS if one_by_one or every(form) < 2)


class Away:
    """Tensors that wait in the host's memory until they are needed again."""

    def __call__(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, of which what it saves of its arguments goes to the host."""

        @functools.wraps(checkpoint)
        def outside(*args: Any, **kwargs: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(self.put, self.fetch):
                return checkpoint(*args, **kwargs)

        return outside

    def put(self, tensor: Tensor) -> Any:
        """Copied in the order of the device's own work, so that nobody waits for it."""
        if tensor.device.type == "cpu" or tensor.nbytes < LEAST_BYTES:
            return tensor
        held = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, pin_memory=True
        )
        return tensor.device, held.copy_(tensor, non_blocking=True)

    def fetch(self, held: Any) -> Tensor:
        if isinstance(held, Tensor):
            return held
        device, tensor = held
        return tensor.to(device, non_blocking=True)


def recompute(model: Any, form: Form, away: Away | None = None) -> None:
    """Let a model compute its layers again in the backward pass, as ``form`` says.

    away: where what a layer begins with waits meanwhile; None: where it is. Raises ``UserError``.
    """
    if not form:
        return
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    refuse_checkpointing(core)
    step = every(form)
    layers = list(numbered_layers(core))
    if step > 1 and not layers:
        raise UserError(
            f"gradient_checkpointing {form}: {type(core).__name__} recomputes all of its layers or "
            "none; use true"
        )
    settings: dict[str, Any] = {"use_reentrant": False}
    if form == KEEP_ATTENTION:
        settings["context_fn"] = _keeping_attention
    enable = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.2x
    (enable or model.gradient_checkpointing_enable)(settings)
    for at, layer in layers:
        layer.gradient_checkpointing = at % step == 0
        if away is not None:
            Recomputed.through(layer, away)


def numbered_layers(core: nn.Module) -> Iterator[tuple[int, GradientCheckpointingLayer]]:
    """The layers that can be computed again one by one, each with its place among its like."""
    for held in core.modules():
        if isinstance(held, nn.ModuleList):
            for at, layer in enumerate(held):
                if isinstance(layer, GradientCheckpointingLayer):
                    yield at, layer


def _keeping_attention() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if ATTENTION.search(getattr(operation, "name", str)()):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
