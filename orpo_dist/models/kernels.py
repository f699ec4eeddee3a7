"""What computes the layers of a model in training: its own code, Liger's kernels, or compiled."""

from __future__ import annotations

import logging
from typing import Any

import torch

from orpo_dist.config import ORPOConfig
from orpo_dist.engines.runtime import Runtime
from orpo_dist.models.compiling import compile_layers, forget_compiled, why_not_compile
from orpo_dist.models.liger import forget_liger, is_installed, use_liger, why_not_liger

logger = logging.getLogger("orpo_dist")

INSTALL = "pip install 'orpo_dist[kernels]'"


def why_not_kernels(config: ORPOConfig, engine: str) -> str | None:
    """What is wrong with the setting on this machine, as a sentence; None: it can be tried."""
    if config.kernels == "liger" and not torch.cuda.is_available():
        return "kernels liger needs a GPU; use auto, compile or none"
    if config.kernels == "liger" and not is_installed():
        return f"kernels liger needs the package liger-kernel: {INSTALL}; or use auto or none"
    if config.kernels == "compile" and (reason := why_not_compile(engine)):
        return f"kernels compile: {reason}; use none"
    return None


def settle_kernels(model: Any, config: ORPOConfig, here: Runtime, device: torch.device) -> str:
    """Let the layers of a model be computed as the setting says; what came of it, as a name."""
    asked = config.kernels
    if asked == "compile":
        compile_layers(model, device)
    if asked in ("compile", "none") or device.type != "cuda":
        return "none" if asked == "auto" else asked
    if not is_installed():
        logger.info("kernels auto: none; liger-kernel is faster, and not here: %s", INSTALL)
        return "none"
    if reason := here.on_main(lambda: why_not_liger(model, device)):
        logger.warning("kernels %s: none, because Liger %s", asked, reason)
        return "none"
    use_liger(model)
    return "liger"


def forget_kernels(model: Any, used: str | None) -> None:
    """Give a model its own layers back."""
    if used == "compile":
        forget_compiled(model)
    if used == "liger":
        forget_liger(model)
