"""The head's kernel on this device: its proof beside the plain version, and the time of both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.lines import Case, Found, Options, Skip
from benchmarks.gpu.material import wait
from orpo_dist.scoring.finish import Finish
from orpo_dist.scoring.hardware import HERE
from orpo_dist.scoring.head import chunk_tokens, logit_bytes, plain_logps, target_logps
from orpo_dist.scoring.head_proof import differs, proved

WARM, TIMED = 2, 5


def cases(options: Options) -> dict[str, Case]:
    """Words, precision of the logits, cap."""
    shapes: dict[str, tuple[int, torch.dtype, float | None]] = {
        "128,256 words, bf16": (128_256, torch.bfloat16, None),
        "128,256 words, fp32": (128_256, torch.float32, None),
        "50,257 words, bf16": (50_257, torch.bfloat16, None),
        "256,000 words, bf16, capped": (256_000, torch.bfloat16, 30.0),
    }
    return {name: partial(beside, options, *shape) for name, shape in shapes.items()}


def beside(options: Options, words: int, dtype: torch.dtype, cap: float | None) -> Found:
    """Forward and backward over one chunk of the size that this GPU gets."""
    if options.device != "cuda":
        raise Skip("needs a GPU: Triton compiles for none else")
    device, finish = torch.device("cuda", torch.cuda.current_device()), Finish(cap=cap)
    reason, forward, backward = differs(device, dtype, words, finish)
    if reason is not None:
        return Found(False, reason, {"forward": forward, "backward": backward})
    assert proved(device, dtype, words, finish)
    rows = chunk_tokens(words, HERE.memory(device), logit_bytes(dtype, True))
    logits = torch.randn(rows, words, device=device).to(dtype)
    targets = torch.randint(0, words, (rows,), device=device)
    fused = seconds(options, logits, lambda x: target_logps(x, targets, finish))
    plain = seconds(options, logits, lambda x: plain_logps(x, targets, finish, HERE))
    rate = 3 * logits.nbytes / fused  # read, read, written
    return Found(
        True,
        f"apart by {forward:.1e} forward, {backward:.1e} backward; {rows:,} rows in "
        f"{1e3 * fused:.2f} ms ({rate / 1e9:,.0f} GB/s), plain {1e3 * plain:.2f} ms",
        {"forward": forward, "backward": backward, "rows": rows, "fused": fused, "plain": plain},
    )


def seconds(options: Options, logits: Tensor, score: Callable[[Tensor], Tensor]) -> float:
    """The median of a forward and a backward pass, which use the logits up."""
    found = []
    for _ in range(WARM + TIMED):
        leaf = logits.clone().requires_grad_()
        wait(options)
        began = time.perf_counter()
        score(leaf).sum().backward()
        wait(options)
        found.append(time.perf_counter() - began)
        del leaf
    return statistics.median(found[WARM:])
