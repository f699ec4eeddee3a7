"""``kernels liger``: Liger's RMSNorm, rope and SwiGLU in place of a model's own, once proved.

Through transformers' own switch, but for this model alone: the switch also puts kernels into the
module of the family, where models on a CPU would meet them, miniatures of a proof among them. Never
Liger's losses, which would take the place of the packed forward.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch

from orpo_dist.base.reasons import reason_of
from orpo_dist.scoring import proof
from orpo_dist.scoring.miniature import miniature
from orpo_dist.scoring.packed_forward import causal_model
from orpo_dist.scoring.scorer import kernel_score

LAYERS = ("rms_norm", "rope", "swiglu")
PATCHED = ("forward", "extra_repr", "_get_name")  # of a module's instance
ROPE = "apply_rotary_pos_emb"


def is_installed() -> bool:
    """Whether there is a liger_kernel."""
    return importlib.util.find_spec("liger_kernel") is not None


def why_not_liger(model: Any, device: torch.device) -> str | None:
    """Why Liger's layers are not to be used with a model, as a sentence goes on; None: proved.

    On a miniature on the device, forward and backward: in bf16 they may be off from fp32 by no more
    than a few times what rounding costs the plain layers.
    """
    core = causal_model(model)
    kind = core.config.model_type
    if not _switches(kind):
        return f"has no layers for models of type {kind}"
    try:
        with proof.undisturbed():
            small = miniature(core).to(device)
            score = kernel_score(small)

            def fused(model: Any, pairs: Any) -> Any:
                use_liger(model)
                try:
                    return score(model, pairs)
                finally:
                    forget_liger(model)

            return proof.kernel_fails(small, score, fused, plainly="plain layers")
    except Exception as error:  # a device or a size that the kernels were not built for
        return f"does not run here ({type(error).__name__}: {reason_of(error)})"


def use_liger(model: Any) -> None:
    """Put Liger's layers into a model of a type that has them."""
    from transformers.integrations import apply_liger_kernel

    core = causal_model(model)
    family = sys.modules[type(core).__module__]
    before = dict(vars(family))
    apply_liger_kernel(core, _switches(core.config.model_type))
    for name, value in before.items():
        if getattr(family, name) is value:
            continue
        plain = getattr(value, "plain", value)
        fused = _on_gpus(plain, getattr(family, name)) if name == ROPE else value
        setattr(family, name, fused)


def forget_liger(model: Any) -> None:
    """Give a model its own layers back, and its family its rope."""
    core = causal_model(model)
    family = sys.modules[type(core).__module__]
    if plain := getattr(getattr(family, ROPE, None), "plain", None):
        setattr(family, ROPE, plain)
    for module in core.modules():
        for name in PATCHED:
            held = vars(module).get(name)
            if getattr(held, "__module__", "").startswith("liger_kernel"):
                delattr(module, name)


def _on_gpus(plain: Callable[..., Any], fused: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def rope(q: Any, *args: Any, **kwargs: Any) -> Any:
        return (fused if q.is_cuda else plain)(q, *args, **kwargs)

    rope.plain = plain  # type: ignore[attr-defined]
    return rope


def _switches(kind: str) -> dict[str, bool]:
    """What to say to Liger for a type of model: these layers and nothing else; empty: unknown."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    known = MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if known is None:
        return {}
    takes = inspect.signature(known).parameters.values()
    return {p.name: p.name in LAYERS for p in takes if isinstance(p.default, bool)}
