"""torch's attention kernel for sequences of any lengths: its own backward pass.

Apart from ``torch``, as the kernel takes seconds to import and serves GPUs alone.
"""

from __future__ import annotations

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
