"""Log-probs of targets from logits in one read, and their gradient in one read and one write.

In Triton, which comes with torch's CUDA build: nothing but ``Hardware`` and the proof imports this.
Scaling and soft-capping of the logits (``Finish``) happen on the way, in fp32, so no further tensor
of S x V is made. The vocabulary is a constant of the kernels, as it is of a model.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from orpo_dist.scoring.finish import Finish

BLOCK = 4096  # logits that a program holds at a time
WARPS = 8


@triton.jit
def _capped(x, CAP: tl.constexpr):  # type: ignore[no-untyped-def]  # of Triton
    """CAP * tanh(x / CAP). Near 0 the quotient of exponentials would lose digits."""
    z = x / CAP
    square = z * z
    near = 1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    small = tl.exp(-2 * tl.abs(z))
    far = (1 - small) / (1 + small)
    return CAP * tl.where(tl.abs(z) < 0.25, z * near, tl.where(z < 0, -far, far))


@triton.jit
def _steepness(x, CAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The derivative of ``_capped``: 1 - tanh^2, without the difference."""
    small = tl.exp(-2 * tl.abs(x / CAP))
    return 4 * small / ((1 + small) * (1 + small))


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    logits, stride, targets, logps, sums,
    V: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One row a program. CAP 0: none. sums: (S, 2), see ``forward``."""
    row = tl.program_id(0).to(tl.int64)  # S x V may be more than 2^31
    logits += row * stride
    peak = -float("inf")
    total = 0.0
    for at in range(0, V, SIZE):
        columns = at + tl.arange(0, SIZE)
        x = tl.load(logits + columns, mask=columns < V, other=-float("inf")).to(tl.float32) * SCALE
        if CAP > 0:
            x = tl.where(columns < V, _capped(x, CAP), -float("inf"))
        highest = tl.maximum(peak, tl.max(x, 0))
        # As torch's logsumexp: what is infinite is not subtracted.
        highest = tl.where(tl.abs(highest) == float("inf"), 0.0, highest)
        total = total * tl.exp(peak - highest) + tl.sum(tl.exp(x - highest), 0)
        peak = highest
    total = tl.log(total)
    x = tl.load(logits + tl.load(targets + row)).to(tl.float32) * SCALE
    if CAP > 0:
        x = _capped(x, CAP)
    tl.store(logps + row, x - peak - total)
    tl.store(sums + 2 * row, peak)
    tl.store(sums + 2 * row + 1, total)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    logits, stride, targets, sums, grad,
    V: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A block of one row a program: read, and overwritten with the gradient."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    places = logits + row * stride + columns
    x = tl.load(places, mask=columns < V, other=0.0).to(tl.float32) * SCALE
    slope = tl.load(grad + row) * SCALE
    if CAP > 0:
        slope *= _steepness(x, CAP)
        x = _capped(x, CAP)
    share = tl.exp(x - tl.load(sums + 2 * row) - tl.load(sums + 2 * row + 1))
    hit = tl.where(columns == tl.load(targets + row), 1.0, 0.0)
    tl.store(places, (hit - share) * slope, mask=columns < V)


def constants(vocabulary: int, finish: Finish) -> dict[str, Any]:
    """What both kernels are compiled for, beside the precision of the logits."""
    size = min(BLOCK, max(16, triton.next_power_of_2(vocabulary)))
    return {
        "V": vocabulary, "SCALE": float(finish.scale), "CAP": float(finish.cap or 0), "SIZE": size,
    }  # fmt: skip


def forward(logits: Tensor, targets: Tensor, finish: Finish) -> tuple[Tensor, Tensor]:
    """Log-probs of targets (S,) from logits (S, V), whose rows are contiguous; both in fp32.

    The second result is (S, 2): the largest logit of each row, and the logarithm of the sum of
    exponentials over it. Added up they would lose digits where logits are large.
    """
    logps, sums = (logits.new_empty(len(logits), *n, dtype=torch.float32) for n in ((), (2,)))
    _launch(forward_kernel, 1, logits, (targets, logps, sums), finish)
    return logps, sums


def backward(logits: Tensor, targets: Tensor, sums: Tensor, grad: Tensor, finish: Finish) -> None:
    """Overwrite logits with the gradient of the log-probs, given theirs (S,)."""
    blocks = triton.cdiv(logits.shape[1], constants(logits.shape[1], finish)["SIZE"])
    _launch(backward_kernel, blocks, logits, (targets, sums, grad), finish)


def _launch(
    kernel: Any, blocks: int, logits: Tensor, rest: tuple[Tensor, ...], finish: Finish
) -> None:
    rows, vocabulary = logits.shape
    assert logits.stride(1) == 1 and all(x.is_contiguous() for x in rest)
    if not rows:  # a grid of nothing cannot be launched
        return
    with torch.cuda.device_of(logits):
        kernel[(rows, blocks)](
            logits, logits.stride(0), *rest, **constants(vocabulary, finish),
            num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
