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

from orpo_dist.scoring.hardware import HERE, Hardware

LOGITS_BYTES = 2**28  # fp32 logits that may exist at once: 256 MiB
FORMER = "orpo_former"  # attribute of a taught forward: what stood in its place
MIN_CHUNK = 128  # tokens; smaller chunks would leave the hardware idle


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
        size = chunk_tokens(config.vocab_size)

        def project(some: Tensor) -> Tensor:
            return _finished(config, plain(some))

        return _logps(project, size, hidden, orpo_targets, orpo_hardware)

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


def chunk_tokens(vocabulary: int) -> int:
    """Tokens that are projected at a time."""
    return max(MIN_CHUNK, LOGITS_BYTES // (4 * vocabulary))


def _logps(
    project: Callable[[Tensor], Tensor],
    size: int,
    hidden: Tensor,
    targets: Tensor,
    hardware: Hardware,
) -> Tensor:
    def score(some: Tensor, wanted: Tensor) -> Tensor:
        return _TargetLogps.apply(project(some), wanted, hardware)

    if len(targets) <= size:
        return score(hidden, targets)
    parts = [
        checkpoint(score, some, wanted, use_reentrant=False)
        for some, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts)


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


def _finished(config: Any, logits: Tensor) -> Tensor:
    """What some families do after the head: Cohere and Granite scale, Gemma caps softly."""
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scale := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
