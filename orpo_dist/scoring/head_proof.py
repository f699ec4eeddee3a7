"""The proof of the head's kernel: beside the plain version, on the device and the real vocabulary.

Kernels are compiled where they run, for the device that is there, by whatever Triton is installed.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from orpo_dist.base.reasons import reason_of
from orpo_dist.scoring.finish import Finish
from orpo_dist.scoring.hardware import Hardware
from orpo_dist.scoring.head import plain_logps
from orpo_dist.scoring.proof import undisturbed

logger = logging.getLogger("orpo_dist")

# Spreads of the logits of a row: next to uniform, as a model has them, and next to certain.
SPREADS = (0.01, 1.0, 1.0, 2.0, 4.0, 8.0, 30.0)
# Relative, beside what rounding to the precision of the logits costs. fp32 makes 2e-7, the fast
# exponentials and quotients of a GPU times a cap of 30 up to 1e-5, and whatever is wrong 1e-2.
LIMIT = 1e-4
ABSOLUTE = 1e-6  # of gradients of rows whose own is about 1: the digits that 1 - p loses


@functools.cache
def proved(device: torch.device, dtype: torch.dtype, vocabulary: int, finish: Finish) -> bool:
    """Whether the kernel computes what the plain version does; says once which of them is used."""
    where = f"{str(dtype).removeprefix('torch.')}, {vocabulary:,} words"
    try:
        reason, forward, backward = differs(device, dtype, vocabulary, finish)
    except torch.OutOfMemoryError:  # nothing is known then: whoever asked may try smaller batches
        raise
    except Exception as error:  # no Triton, no compiler, a device that it does not know
        reason = f"does not run here ({type(error).__name__}: {reason_of(error)})"
    if reason is None:
        logger.info(
            "head: one fused kernel (%s; beside the plain version log-probs %.1e apart, gradients "
            "%.1e)", where, forward, backward,
        )  # fmt: skip
        return True
    logger.warning(
        "head: in plain operations, which read and write the logits several times and copy them "
        "to fp32, because the fused kernel %s (%s)", reason, where,
    )  # fmt: skip
    return False


def differs(
    device: torch.device,
    dtype: torch.dtype,
    vocabulary: int,
    finish: Finish,
    hardware: Hardware | None = None,
) -> tuple[str | None, float, float]:
    """Why the kernel is not to be used, or None; how far log-probs and gradients are apart.

    The plain version computes the same logits in fp64, where its rounding is nothing. Gradients may
    be off by what rounding to their own precision costs. hardware: what runs the kernel.
    """
    hardware = hardware or Hardware()
    with undisturbed(), _unsaved():
        logits, targets, grad = _rows(device, dtype, vocabulary)
        exact = logits.double().requires_grad_()
        expected = plain_logps(exact.clone(), targets, finish, hardware)
        (slope,) = torch.autograd.grad(expected, exact, grad.double())
        logps, sums = hardware.head_logps(logits, targets, finish)
        hardware.head_gradient(logits, targets, sums, grad, finish)
        most = torch.finfo(dtype).eps + LIMIT
        forward = _apart(logps, expected, 1.0)
        backward = _apart(logits, slope, ABSOLUTE / most)
    if forward <= LIMIT and backward <= most:
        return None, forward, backward
    reason = f"computes something else here: log-probs {forward:.1e} apart"
    return f"{reason}, gradients {backward:.1e}", forward, backward


def _rows(device: torch.device, dtype: torch.dtype, vocabulary: int) -> tuple[Tensor, ...]:
    """Logits (S, V), targets (S,) with the first and the last word, and gradients (S,)."""
    draw = torch.Generator().manual_seed(0)
    spreads = torch.tensor(SPREADS)
    logits = torch.randn(len(spreads), vocabulary, generator=draw) * spreads[:, None]
    logits[1, 1:-1:2] = -torch.inf  # words that are ruled out
    targets = torch.randint(0, vocabulary, (len(spreads),), generator=draw)
    targets[0], targets[1], targets[-1] = 0, vocabulary - 1, logits[-1].argmax()
    grad = 0.5 + torch.rand(len(spreads), generator=draw)
    return logits.to(device, dtype), targets.to(device), grad.to(device)


def _unsaved() -> torch.autograd.graph.saved_tensors_hooks:
    """Whoever asks may be in a checkpoint, which counts what is saved."""
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


def _apart(found: Tensor, expected: Tensor, more: float) -> float:
    """The largest difference, relative to what is expected and ``more``; infinite where none is."""
    apart = (found.double() - expected).abs() / (expected.abs() + more)
    return apart.nan_to_num(nan=torch.inf).max().item()
