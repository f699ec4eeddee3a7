"""What torch says of the GPUs here: the one place that decides whether there are any."""

from __future__ import annotations

import functools
import logging
import os

import torch

from orpo_dist.base.failure import rank_among_others

logger = logging.getLogger("orpo_dist")


def deepspeed_follows_torch() -> None:
    """Set DeepSpeed to the CPU where torch sees no GPU, or it would guess, and say so.

    Has to be called before DeepSpeed is imported, in its launcher too.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


@functools.cache
def mention_idle_gpus(command: str) -> None:
    """One line, once, where this process is alone with more GPUs than the one it uses."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and rank_among_others() is None:
        logger.warning(
            "%d GPUs are visible and one is used; 'orpo-dist launch ddp -- %s ...' uses all",
            gpus,
            command,
        )


def computes_bf16() -> bool:
    """Whether the GPU has bf16 in hardware; for older ones (V100, T4) it is emulated."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


@functools.cache
def mention_emulated_bf16() -> None:
    """One line, once, where bf16 is asked for on a GPU that does not have it."""
    if torch.cuda.is_available() and not computes_bf16():
        logger.warning(
            "mixed_precision bf16: %s has none in hardware, it is emulated; fp16, the default "
            "there, is not",
            torch.cuda.get_device_name(),
        )
