"""Packed attention on this device against plain SDPA in fp32, one answer at a time."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.lines import Case, Found, Options

LENGTHS = ((20, 10, 6), (3, 5, 9), (130, 70, 41), (1, 1, 1))
APART = 2e-2  # of the largest value: bf16 has eight bits


def cases(options: Options) -> dict[str, Case]:
    """Heads of queries, heads of keys, head size of queries, of values, window."""
    shapes: dict[str, tuple[int, int, int, int, int | None]] = {
        f"head size {size}": (4, 4, size, size, None) for size in (64, 96, 128, 192, 256)
    }
    shapes["grouped heads, 8 over 2"] = (8, 2, 128, 128, None)
    shapes["values of size 64 under 128"] = (4, 4, 128, 64, None)
    shapes["window of 16"] = (4, 4, 64, 64, 16)
    shapes["window of 16, grouped"] = (8, 2, 128, 128, 16)
    return {name: partial(compare, options, *shape) for name, shape in shapes.items()}


def compare(
    options: Options, heads: int, key_heads: int, size: int, value_size: int, window: int | None
) -> Found:
    """Outputs and the gradients of queries, keys and values."""
    from transformers import AttentionInterface

    from orpo_dist.base.types import Pair
    from orpo_dist.scoring.attention import PREFIX
    from orpo_dist.scoring.scorer import Scorer

    pairs = [Pair(*([7] * length for length in lengths)) for lengths in LENGTHS]
    batch: Any = Scorer(True, varlen=True).collate(pairs).to(options.device)
    packed = AttentionInterface()[PREFIX + "sdpa"]
    draw = torch.Generator(options.device).manual_seed(0)
    total = sum(map(sum, LENGTHS))
    leaves = [
        torch.randn((1, count, total, wide), generator=draw, device=options.device)
        .bfloat16()
        .requires_grad_()
        for count, wide in ((heads, size), (key_heads, size), (key_heads, value_size))
    ]
    with Operations() as seen:
        output = packed(
            None, *leaves, dataclasses.replace(batch.mask, window=window), scaling=size**-0.5
        )[0]
        mine = [output, *torch.autograd.grad(output.float().square().sum(), leaves)]
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    output = one_by_one(*exact, size**-0.5, window)
    other = [output, *torch.autograd.grad(output.square().sum(), exact)]
    forward, *backward = (
        ((a.float() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(mine, other, strict=True)
    )
    how = "varlen kernel" if any("varlen" in name for name in seen.names) else "pair by pair"
    return Found(
        max(forward, *backward) < APART,
        f"apart by {forward:.1e} forward, {max(backward):.1e} backward, {how}",
        {"forward": forward, "backward": max(backward), "how": how},
    )


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
) -> Tensor:
    """(1, H, T, D) -> (1, T, H, D)."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    at, outputs = 0, []
    for prompt, chosen, rejected in LENGTHS:
        places = torch.arange(at, at + prompt + chosen + rejected, device=query.device)
        for answer in (places[prompt : prompt + chosen], places[prompt + chosen :]):
            where = torch.cat([places[:prompt], answer])
            row = torch.arange(len(where), device=query.device)
            apart = row[:, None] - row
            visible = (apart >= 0) & (apart < (window or len(where)))
            outputs.append(
                scaled_dot_product_attention(
                    *(x[:, :, where] for x in (query, key, value)), visible, scale=scaling
                )[:, :, 0 if answer[0] == places[prompt] else prompt :]
            )
        at += len(places)
    return torch.cat(outputs, 2).transpose(1, 2)


class Operations(TorchDispatchMode):
    """The names of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))
