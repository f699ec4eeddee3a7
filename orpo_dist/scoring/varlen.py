"""Packed attention as one variable-length kernel call, for GPUs: torch's own flash attention.

``[prompt][chosen][rejected]`` is two sequences of queries, ``prompt + chosen`` and ``rejected``,
over two sequences of keys, ``prompt + chosen`` and ``prompt + rejected``, each causal and aligned
at its end. So only the keys of the prompts are laid out twice; queries stay where they are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orpo_dist.scoring.parcel import Parcel, together
from orpo_dist.scoring.ragged import begins, runs
from orpo_dist.upstream.kernels import varlen_backward

MAX_HEAD_DIM = 256  # of flash attention


@dataclass(frozen=True)
class VarlenLayout(Parcel):
    """Where the sequences of a packed batch lie.

    query_starts, key_starts: (2B + 1,) int32. keys: (K,) position of every key, prompts twice.
    again: (P,) positions in the packed sequence of the prompt tokens, again_keys: (P,) where their
    second copies lie among the keys; first_keys: (T,) where the first copy of every token lies.
    max_query, max_key: the longest sequence of each kind.
    """

    query_starts: Tensor
    key_starts: Tensor
    keys: Tensor
    again: Tensor
    again_keys: Tensor
    first_keys: Tensor
    max_query: int
    max_key: int

    @classmethod
    def of(cls, lengths: np.ndarray, tensors: Mapping[str, Tensor]) -> VarlenLayout:
        """From the tensors of ``layout_arrays(lengths)``, which may stand among others."""
        prompt, chosen, rejected = lengths.T
        return cls(
            **{name: tensors[name] for name in cls.__annotations__ if name in tensors},
            max_query=int(np.maximum(prompt + chosen, rejected).max()),
            max_key=int((prompt + np.maximum(chosen, rejected)).max()),
        )


def varlen_layout(segments: tuple[tuple[int, int, int], ...]) -> VarlenLayout:
    """The layout of pairs with these (prompt, chosen, rejected) lengths."""
    lengths = np.array(segments, dtype=np.int64)
    return VarlenLayout.of(lengths, together(layout_arrays(lengths)))


def layout_arrays(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a ``VarlenLayout`` by name. lengths: (B, 3) of prompt, chosen, rejected."""
    prompt, chosen, rejected = lengths.T
    queries = np.stack([prompt + chosen, rejected], 1)
    keys = np.stack([prompt + chosen, prompt + rejected], 1)
    own, other = begins(keys).T  # among the keys
    start, _, answer = begins(lengths).T  # in the packed sequence
    return {
        "query_starts": np.append(0, queries.cumsum()).astype(np.int32),
        "key_starts": np.append(0, keys.cumsum()).astype(np.int32),
        "keys": runs(
            np.stack([start, start, answer], 1), np.stack([prompt + chosen, prompt, rejected], 1)
        ),
        "again": runs(start, prompt),
        "again_keys": runs(other, prompt),
        "first_keys": runs(np.stack([own, other + prompt], 1), queries),
    }


class LayOut(torch.autograd.Function):
    """(T, …) -> (C, …), some rows more than once. The gradient adds all copies without atomics.

    places: (C,) row of each copy. first: (T,) the first copy of each row. again: (A,) rows that
    have another copy; second: (A,) which. Copies beyond these must have no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, packed: Tensor, places: Tensor, first: Tensor, again: Tensor, second: Tensor
    ) -> Tensor:
        ctx.copies = first, again, second
        return packed.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, again, second = ctx.copies
        packed = grad.index_select(0, first)
        packed[again] += grad.index_select(0, second)
        return packed, None, None, None, None


def kernel_dtype(query: Tensor) -> torch.dtype:
    """What the kernel will compute in: autocast's precision, or the tensors' own."""
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return query.dtype


def can_run(query: Tensor, softcap: float | None) -> bool:
    """Whether the kernel serves this call; it knows half precision only, and no soft-capping."""
    return (
        query.is_cuda
        and kernel_dtype(query) in (torch.float16, torch.bfloat16)
        and softcap is None
        and query.shape[-1] <= MAX_HEAD_DIM
    )


@functools.cache
def _takes_enable_gqa(kernel: Any) -> bool:
    return "enable_gqa" in inspect.signature(kernel).parameters


def _widened(heads: Tensor, width: int) -> Tensor:
    missing = width - heads.shape[-1]
    return F.pad(heads, (0, missing)) if missing else heads  # padding by nothing would copy


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VarlenLayout,
    scaling: float,
    sliding_window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """query: (1, H, T, D); key: (1, H or fewer, T, D); value: (1, as key, T, E).

    sinks: (H,) a score of each head that takes its share of every softmax and adds nothing.
    Returns (1, T, H, E).
    """
    dtype = kernel_dtype(query)
    # The kernel knows one head size for all, a multiple of 8; zeros change neither scores nor sums.
    width = -(-max(query.shape[-1], value.shape[-1]) // 8) * 8
    queries, keys, values = (
        _widened(x[0].transpose(0, 1).to(dtype), width) for x in (query, key, value)
    )
    call = _Call(
        layout,
        scaling,
        (-1 if sliding_window is None else sliding_window - 1, 0),
        query.shape[1] != key.shape[1],
    )
    places = layout.keys, layout.first_keys, layout.again, layout.again_keys
    laid = queries.contiguous(), *(LayOut.apply(x, *places) for x in (keys, values))
    output: Any = call(*laid) if sinks is None else _WithSinks.apply(*laid, sinks, call)
    return output[None] if width == value.shape[-1] else output[None, ..., : value.shape[-1]]


@dataclass(frozen=True)
class _Call:
    """How the kernel is called, whatever is computed."""

    layout: VarlenLayout
    scale: float
    window: tuple[int, int]
    grouped: bool

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Any:
        from torch.nn.attention.varlen import varlen_attn

        if _takes_enable_gqa(varlen_attn):  # before torch 2.12 always on
            more["enable_gqa"] = self.grouped
        return varlen_attn(
            query, key, value, *self.places, scale=self.scale, window_size=self.window, **more
        )

    @property
    def places(self) -> tuple[Tensor, Tensor, int, int]:
        layout = self.layout
        return layout.query_starts, layout.key_starts, layout.max_query, layout.max_key

    def backward(self, grad: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value; saved: these, the output and its log-sum-exp."""
        state = torch.zeros(2, dtype=torch.uint64, device=grad.device)  # of dropout: there is none
        causal = self.window == (-1, 0)
        return varlen_backward(
            grad, *saved, *self.places, causal, state, self.scale, list(self.window)
        )


class _WithSinks(torch.autograd.Function):
    """Attention whose softmax has one more column, of a score a head and of value zero.

    The kernel knows nothing of it. But with the log-sum-exp that it returns the share of that
    column is known, and its backward pass, given output and log-sum-exp with the column, makes
    exactly the gradients with the column.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, call: _Call
    ) -> Tensor:
        from torch.nn.attention.varlen import AuxRequest

        output, sums = call(query, key, value, return_aux=AuxRequest(lse=True))  # sums: (H, T)
        column = sinks.to(sums.dtype)[:, None]
        kept = torch.sigmoid(sums - column).T[..., None]
        output = (output * kept).to(output.dtype)
        sums = torch.logaddexp(sums, column)
        ctx.save_for_backward(query, key, value, output, sums, sinks)
        ctx.call = call
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, sinks = ctx.saved_tensors
        output, sums = saved[3:]
        share = torch.exp(sinks.to(sums.dtype)[:, None] - sums)
        slope = -(share.T * (grad * output).sum(-1, dtype=sums.dtype)).sum(0)
        return *ctx.call.backward(grad.contiguous(), saved), slope.to(sinks.dtype), None
