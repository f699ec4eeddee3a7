"""``kernels compile``: every decoder layer through torch.compile, whatever the lengths of a batch.

Layers are alike, so that one compiled graph serves them all, and no module is wrapped: weights keep
their names. Attention over packed pairs stays outside on purpose: which pairs a batch holds would
otherwise be part of the graph, and every batch would compile anew.
"""

from __future__ import annotations

import functools
import os
import shutil
import types
from typing import Any

import torch
from torch import nn

from orpo_dist.base.reasons import reason_of
from orpo_dist.base.types import UserError
from orpo_dist.models.recomputing import numbered_layers
from orpo_dist.scoring.attention import keep_apart
from orpo_dist.scoring.head import FORMER
from orpo_dist.scoring.packed_forward import causal_model, needs_rows
from orpo_dist.upstream.hf_models import Recomputed

COMPILERS = ("g++", "clang++", "c++")
INSTEAD = "; set kernels none"


def why_not_compile(engine: str) -> str | None:
    """Why nothing can be compiled here or under an engine (its name); None: it can be tried."""
    if engine == "zero3":
        return "zero3 gathers weights inside of layers, which no graph can hold"
    asked = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([asked] if asked else COMPILERS)):
        return f"needs a C++ compiler, and there is no {asked or ' or '.join(COMPILERS)}"
    if shutil.which(os.environ.get("CC", "gcc")) is None and torch.cuda.is_available():
        return "needs a C compiler for Triton, and there is no gcc"
    return None


def compile_layers(model: Any, device: torch.device) -> None:
    """Let the decoder layers of a model train in compiled form; evaluations stay as they are.

    Raises ``UserError`` for a model whose layers cannot, and where the compiler does not work.
    """
    core = causal_model(model)
    layers = [layer for _, layer in numbered_layers(core)]
    if not layers:
        raise UserError(f"kernels compile: {type(core).__name__} has no layers that stand alone")
    if needs_rows(core):
        raise UserError(
            f"kernels compile: {type(core).__name__} has layers that keep a state along a sequence"
            + INSTEAD
        )
    if getattr(core, "is_quantized", False):
        raise UserError(f"kernels compile: not with quantised weights{INSTEAD}")
    _try_out(device)
    keep_apart()
    for layer in layers:
        layer.forward = types.MethodType(_compiled(layer), layer)


def forget_compiled(model: Any) -> None:
    """Undo ``compile_layers``."""
    for _, layer in numbered_layers(causal_model(model)):
        if hasattr(taught := vars(layer).get("forward"), FORMER):
            del layer.forward
            if (former := getattr(taught, FORMER)) is not None:
                layer.forward = former


def _compiled(layer: nn.Module) -> Any:
    former = vars(layer).get("forward")  # of accelerate's hooks, say
    plain = former or types.MethodType(type(layer).forward, layer)
    inside = torch.compile(former or Recomputed.plain(layer), dynamic=True)

    @functools.wraps(type(layer).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return plain(*args, **kwargs)
        # Recomputation goes around what is compiled, which has a gap where attention is.
        return Recomputed.run(self, inside, *args, **kwargs)

    setattr(forward, FORMER, former)
    return forward


def _try_out(device: torch.device) -> None:
    """Compile something small, so that a compiler that does not work is told of at the start."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(64, device=device))
    except Exception as error:  # whatever compilers and their libraries lack
        raise UserError(
            f"kernels compile: torch.compile does not work here ({reason_of(error)}){INSTEAD}"
        ) from error
