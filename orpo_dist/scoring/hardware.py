"""What computes the scores, as a value that the scorer carries.

A run asks the tensors themselves; a plan is of other hardware than that which it is made on.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from orpo_dist.scoring.finish import Finish
from orpo_dist.upstream.kernels import varlen_backward

MAX_HEAD_DIM = 256  # of flash attention
BLOCK_BYTES = 2**22  # logits that a CPU turns into log-probs at a time: 4 MiB, to stay in its cache
FUSED = (torch.float32, torch.bfloat16, torch.float16)  # logits that the head's kernel takes


class Hardware:
    """The device that tensors lie on."""

    def memory(self, device: torch.device) -> int | None:
        """Bytes of a GPU, whoever uses them now; None: not a GPU whose memory is known."""
        if device.type != "cuda":
            return None
        return int(torch.cuda.get_device_properties(device).total_memory)

    def fuses_head(
        self, device: torch.device, dtype: torch.dtype, vocabulary: int, finish: Finish
    ) -> bool:
        """Whether one kernel serves logits like these; it has then been proved on this device."""
        if device.type != "cuda" or dtype not in FUSED:
            return False
        from orpo_dist.scoring.head_proof import proved

        return proved(device, dtype, vocabulary, finish)

    def head_logps(self, logits: Tensor, targets: Tensor, finish: Finish) -> tuple[Tensor, Tensor]:
        """Log-probs (S,) of logits (S, V) by the kernel, and the sums that their gradient needs."""
        from orpo_dist.scoring import head_kernel

        return head_kernel.forward(logits, targets, finish)

    def head_gradient(
        self, logits: Tensor, targets: Tensor, sums: Tensor, grad: Tensor, finish: Finish
    ) -> None:
        """Overwrite logits with the gradient of such log-probs, given theirs, (S,)."""
        from orpo_dist.scoring import head_kernel

        head_kernel.backward(logits, targets, sums, grad, finish)

    def block_rows(self, logits: Tensor) -> int:
        """How many rows of logits (S, V) become log-probs at a time, where no kernel does it."""
        if logits.device.type != "cpu":
            return len(logits)
        return max(1, BLOCK_BYTES // (4 * logits.shape[1]))

    def kernel_dtype(self, query: Tensor) -> torch.dtype:
        """What kernels will compute in: autocast's precision, or the tensors' own."""
        if query.is_cuda and torch.is_autocast_enabled("cuda"):
            return torch.get_autocast_dtype("cuda")
        return query.dtype

    def runs_kernel(self, query: Tensor, softcap: float | None) -> bool:
        """Whether the kernel serves this call; half precision, and no soft-capping."""
        return (
            query.is_cuda
            and self.kernel_dtype(query) in (torch.float16, torch.bfloat16)
            and softcap is None
            and query.shape[-1] <= MAX_HEAD_DIM
        )

    def attend(self, *given: Any, **options: Any) -> Any:
        """torch's variable-length attention. given, options: what ``varlen_attn`` takes."""
        from torch.nn.attention.varlen import varlen_attn

        if not _takes_enable_gqa(varlen_attn):  # before torch 2.12 always on
            del options["enable_gqa"]
        return varlen_attn(*given, **options)

    def attend_backward(
        self,
        grad: Tensor,
        saved: tuple[Tensor, ...],
        places: tuple[Tensor, Tensor, int, int],
        scale: float,
        window: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value; saved: these, the output and its log-sum-exp."""
        state = torch.zeros(2, dtype=torch.uint64, device=grad.device)  # of dropout: there is none
        causal = window == (-1, 0)
        return varlen_backward(grad, *saved, *places, causal, state, scale, list(window))


HERE = Hardware()


@functools.cache
def _takes_enable_gqa(kernel: Any) -> bool:
    return "enable_gqa" in inspect.signature(kernel).parameters
