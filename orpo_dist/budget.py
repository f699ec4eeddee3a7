"""``max_tokens_per_microbatch: auto``: how many tokens fit, found by trying."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

import torch

from orpo_dist.batching import Plan
from orpo_dist.types import UserError

logger = logging.getLogger("orpo_dist")

# A CPU gains nothing from larger micro-batches (docs/packing.md), and what does not fit there
# cannot be tried: the kernel kills the process.
CPU_TOKENS = 512


def find_token_budget(
    plan: Plan, fits: Callable[[Sequence[int]], bool], agree: Callable[[bool], bool]
) -> int | None:
    """The token budget under which the largest possible micro-batch fits; None: no limit needed.

    fits: runs forward and backward over the pairs with these indices; False if memory ran out.
    agree: whether it did on every rank; all ranks call it equally often.
    Raises ``UserError`` if a single pair does not fit.
    """
    budget = None
    while True:
        pairs = dataclasses.replace(plan, token_budget=budget).largest()
        tokens = int(plan.sizes[pairs].max()) * len(pairs) if plan.padded else None
        tokens = tokens or int(plan.sizes[pairs].sum())
        if agree(fits(pairs)):
            if budget is not None:
                logger.info("max_tokens_per_microbatch: %d (%d ran out of memory)", budget, tokens)
            return budget
        if len(pairs) == 1:
            raise UserError(
                f"out of memory with one pair of {tokens} tokens: lower max_prompt_length or "
                "max_completion_length, or try gradient_checkpointing, peft or quantization int4"
            )
        budget = tokens // 2


def fits_in_memory(model: torch.nn.Module, loss: Callable[[], torch.Tensor], copies: int) -> bool:
    """Whether ``loss().backward()`` works beside ``copies`` of the weights that train.

    Leaves no gradient behind. Other errors than lack of memory are raised.
    """
    try:
        reserved = [
            torch.empty_like(p)
            for p in model.parameters()
            if p.requires_grad
            for _ in range(copies)
        ]
        loss().backward()
        del reserved
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
