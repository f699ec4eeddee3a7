"""The vocabulary head: log-probs of targets, in chunks, inside one call of the head module.

The logits of a whole batch never exist. How many chunks there are depends on a rank's own tokens,
so an engine must not see them: it gathers weights and reduces gradients with every *call* of a
module, and ranks whose calls differ in number wait for each other for ever (ZeRO-3) or mix up
gradients (FSDP2). The head module is therefore called once a forward pass on every rank.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from orpo_dist.scoring.finish import Finish
from orpo_dist.scoring.hardware import HERE, Hardware

FORMER = "orpo_former"  # attribute of a taught forward: what stood in its place
LOGITS_BYTES = 2**28  # fp32 logits that may exist at once on a CPU: 256 MiB
MIN_CHUNK = 128  # tokens; smaller chunks would leave the hardware idle

# On a GPU: what the logits of a chunk may take with all that is made of them, as a share of its
# memory within bounds, and the tokens of which a chunk has a multiple: whole tiles of a product.
LOGITS_SHARE, LEAST_LOGITS, MOST_LOGITS = 1 / 64, 2**27, 2**31
GPU_ROWS = 256


def teach_targets(core: Any) -> None:
    """Let a model's head take ``orpo_targets``: it then returns their log-probs, not logits."""
    head, config = core.get_output_embeddings(), core.config.get_text_config()
    former = vars(head).get("forward")  # of accelerate's hooks, say
    if hasattr(former, FORMER):
        return  # it has learnt that before

    @functools.wraps(type(head).forward)
    def forward(
        self: Any,
        hidden: Tensor,
        *args: Any,
        orpo_targets: Tensor | None = None,
        orpo_hardware: Hardware = HERE,
        **kwargs: Any,
    ) -> Any:
        # Not self(...): hooks belong to the one call around all chunks.
        plain = former or functools.partial(type(self).forward, self)
        if orpo_targets is None:
            return plain(hidden, *args, **kwargs)
        words, finish = config.vocab_size, Finish.of(config)
        dtype, memory = orpo_hardware.kernel_dtype(hidden), orpo_hardware.memory(hidden.device)
        fused = orpo_hardware.fuses_head(hidden.device, dtype, words, finish)
        size = chunk_tokens(words, memory, logit_bytes(dtype, fused))

        def score(some: Tensor, wanted: Tensor) -> Tensor:
            return target_logps(plain(some), wanted, finish, orpo_hardware)

        return _in_chunks(score, size, hidden, orpo_targets)

    setattr(forward, FORMER, former)
    head.forward = types.MethodType(forward, head)


def forget_targets(core: Any) -> None:
    """Undo ``teach_targets``."""
    head = core.get_output_embeddings()
    former = getattr(vars(head).get("forward"), FORMER, None)
    del head.forward
    if former is not None:
        head.forward = former


def token_logps(core: Any, hidden: Tensor, targets: Tensor, hardware: Hardware = HERE) -> Tensor:
    """Log-probs of the targets, (S,) in fp32 or better, from hidden states (S, H).

    Small inputs are scored at once; more than one chunk is recomputed in the backward pass. The
    model must have been through ``teach_targets``.
    """
    return core.get_output_embeddings()(hidden, orpo_targets=targets, orpo_hardware=hardware)


def chunk_tokens(vocabulary: int, memory: int | None = None, logit: int = 4) -> int:
    """Tokens that are projected at a time.

    memory: bytes of the GPU, all of them, so that every call gives the same; None on a CPU. logit:
    bytes that each logit takes on a GPU (``logit_bytes``).
    """
    if memory is None:
        return max(MIN_CHUNK, LOGITS_BYTES // (4 * vocabulary))
    most = min(max(int(LOGITS_SHARE * memory), LEAST_LOGITS), MOST_LOGITS)
    return max(GPU_ROWS, most // (logit * vocabulary) // GPU_ROWS * GPU_ROWS)


def logit_bytes(dtype: torch.dtype, fused: bool) -> int:
    """What a logit takes while it becomes a log-prob: itself, and without the kernel two in fp32,
    its copy and its exponential."""
    return dtype.itemsize + (0 if fused else 2 * 4)


def _in_chunks(
    score: Callable[[Tensor, Tensor], Tensor], size: int, hidden: Tensor, targets: Tensor
) -> Tensor:
    if len(targets) <= size:
        return score(hidden, targets)
    parts = [
        checkpoint(score, some, wanted, use_reentrant=False)
        for some, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts)


def target_logps(
    logits: Tensor, targets: Tensor, finish: Finish, hardware: Hardware = HERE
) -> Tensor:
    """log p(target), (S,) in fp32 or better, from a head's logits (S, V), which it uses up."""
    if hardware.fuses_head(logits.device, logits.dtype, logits.shape[1], finish):
        return _FusedLogps.apply(logits, targets, finish, hardware)
    return plain_logps(logits, targets, finish, hardware)


def plain_logps(logits: Tensor, targets: Tensor, finish: Finish, hardware: Hardware) -> Tensor:
    """The same in torch's own operations, on any device."""
    return _TargetLogps.apply(finish(logits), targets, hardware)


class _FusedLogps(torch.autograd.Function):
    """The same as ``_TargetLogps`` of finished logits, in one kernel forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, finish: Finish, hardware: Hardware
    ) -> Tensor:
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        logps, sums = hardware.head_logps(logits, targets, finish)
        ctx.save_for_backward(logits, targets, sums)
        ctx.how = finish, hardware
        return logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, sums = ctx.saved_tensors  # a second backward raises here
        finish, hardware = ctx.how
        hardware.head_gradient(logits, targets, sums, grad.contiguous(), finish)
        torch.autograd.graph.increment_version(logits)  # autograd does not see what kernels write
        return logits, None, None, None


class _TargetLogps(torch.autograd.Function):
    """log p(target), (S,) in fp32 or better, from logits (S, V) that nobody else needs.

    The same as ``-cross_entropy(logits.float(), targets, reduction="none")`` without its three
    further tensors of S x V: the logits themselves become their gradient. Blocks of rows stay in
    the cache of a CPU (``Hardware``).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, hardware: Hardware = HERE) -> Tensor:
        ctx.hardware = hardware
        exact = torch.promote_types(logits.dtype, torch.float32)
        normaliser = torch.empty(len(targets), dtype=exact, device=logits.device)
        for rows in _blocks(logits, hardware):
            normaliser[rows] = logits[rows].to(exact).logsumexp(1)
        ctx.save_for_backward(logits, targets, normaliser)
        return logits.gather(1, targets[:, None])[:, 0] - normaliser

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, normaliser = ctx.saved_tensors  # a second backward raises here
        for rows in _blocks(logits, ctx.hardware):
            part = logits[rows].to(normaliser.dtype)
            part.sub_(normaliser[rows, None]).exp_().mul_(-grad[rows, None])
            part.scatter_add_(1, targets[rows, None], grad[rows, None].to(part.dtype))
            if part.dtype != logits.dtype:  # else it was written in place
                logits[rows] = part
        return logits, None, None


def _blocks(logits: Tensor, hardware: Hardware) -> list[slice]:
    size = hardware.block_rows(logits)
    return [slice(at, at + size) for at in range(0, len(logits), size)]
