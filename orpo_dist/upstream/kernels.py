"""torch's attention kernel for sequences of any lengths: its own backward pass, and a stand-in.

Apart from ``torch``, as the kernel takes seconds to import and serves GPUs alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from orpo_dist.upstream.register import reaches_for

if TYPE_CHECKING:
    from torch import Tensor


@reaches_for(
    "torch.nn.attention.varlen:_varlen_attn_backward",
    "torch.nn.attention.varlen:_varlen_attn_backward_fake(grad_out, query, key, value, out, lse, "
    "cu_seq_q, cu_seq_k, max_q, max_k, is_causal, rng_state, scale, window_size)",
    because="with attention sinks the backward pass gets another output and log-sum-exp than the "
    "kernel has made",
    upstream="torch/nn/attention/varlen.py, torch_attn::_varlen_attn_backward (2.13)",
    until="varlen_attn takes attention sinks",
)
def varlen_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from those of the output; the kernel's own arguments."""
    import torch

    return torch.ops.torch_attn._varlen_attn_backward(*arguments)


@reaches_for(
    "torch.nn.attention.varlen:varlen_attn",
    because="the kernel does not run over tensors without data on every build of torch",
    upstream="torch/nn/attention/varlen.py (2.13)",
    until="varlen_attn runs over fake tensors of a CPU",
)
@contextlib.contextmanager
def stand_in(kernel: Callable[..., Tensor]) -> Iterator[None]:
    """Within it, ``kernel`` computes in place of ``varlen_attn``."""
    import torch.nn.attention.varlen as kernels

    former = kernels.varlen_attn
    kernels.varlen_attn = kernel
    try:
        yield
    finally:
        kernels.varlen_attn = former
