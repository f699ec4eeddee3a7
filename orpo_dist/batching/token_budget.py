"""The token budget of a micro-batch: how much fits, found by trying.

Tokens fill a GPU, not pairs. How a step is cut never changes its loss, so the largest micro-batches
that fit are the right ones.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from orpo_dist.base.types import UserError
from orpo_dist.batching.steps import StepPlan
from orpo_dist.config import ORPOConfig

logger = logging.getLogger("orpo_dist")

# A CPU gains nothing from larger micro-batches (docs/packing.md), and what does not fit there
# cannot be tried: the kernel kills the process.
CPU_TOKENS = 512

MOST_TOKENS = 65_536  # beyond it a GPU gains nothing, and only the trial would take longer
MARGIN = 0.9  # of what fitted: later batches are cut otherwise, and memory gets fragmented

LOWER = (
    "lower max_prompt_length or max_completion_length, or try gradient_checkpointing, peft, "
    "quantization int4 or, on several processes, sequence_parallel"
)


def asked_budget(config: ORPOConfig) -> int | None:
    """The token budget that a config gives as a number; None: none, or one that is to be found.

    Without gradients ``auto`` needs none: there ``batch_size`` is the limit.
    """
    asked = config.max_tokens_per_microbatch
    return asked if isinstance(asked, int) else None


def find_token_budget(
    plan: StepPlan, fits: Callable[[Sequence[int]], bool], agree: Callable[[bool], bool]
) -> int | None:
    """The token budget under which the largest possible micro-batch fits; None: no limit needed.

    fits: runs forward and backward over the pairs with these indices; False if memory ran out.
    agree: whether it did on every rank; all ranks call it equally often. Where something did not
    fit the budget keeps a margin.
    Raises ``UserError`` if a single pair does not fit.
    """
    whole = tokens_of(plan, dataclasses.replace(plan, token_budget=None).largest())
    budget = MOST_TOKENS if whole > MOST_TOKENS else None
    failed = 0
    while True:
        pairs = dataclasses.replace(plan, token_budget=budget).largest()
        tokens = tokens_of(plan, pairs)
        if agree(fits(pairs)):
            break
        if len(pairs) == 1:
            raise UserError(f"out of memory with one pair of {tokens} tokens: {LOWER}")
        failed, budget = tokens, tokens // 2
    if not failed:
        return budget
    more = dataclasses.replace(plan, token_budget=(tokens + failed) // 2).largest()
    if tokens < tokens_of(plan, more) < failed and agree(fits(more)):
        tokens = tokens_of(plan, more)
    budget = int(MARGIN * tokens)
    logger.info(
        "max_tokens_per_microbatch: %d (%d fitted, %d ran out of memory)", budget, tokens, failed
    )
    return budget


def tokens_of(plan: StepPlan, pairs: Sequence[int]) -> int:
    """Tokens that pairs take in one micro-batch, padding included."""
    sizes = plan.sizes[list(pairs)]
    return int(sizes.max()) * len(pairs) if plan.padded else int(sizes.sum())


def halved(sizes: np.ndarray, padded: bool) -> tuple[list[int], list[int]] | None:
    """The positions of some pairs in two halves of about equal tokens; None for one pair.

    sizes: (B,) tokens of each pair. Padded, neighbours in length stay together.
    """
    if len(sizes) < 2:
        return None
    order = np.argsort(-sizes, kind="stable").tolist()
    if padded:
        middle = len(order) // 2
        return order[:middle], order[middle:]
    halves: tuple[list[int], list[int]] = ([], [])
    loads = [0, 0]
    for at in order:
        lighter = int(loads[1] < loads[0])
        halves[lighter].append(at)
        loads[lighter] += int(sizes[at])
    return halves


def fits_in_memory(model: torch.nn.Module, loss: Callable[[], torch.Tensor], copies: float) -> bool:
    """Whether ``loss().backward()`` works beside ``copies`` of the weights that train.

    Leaves no gradient behind. Other errors than lack of memory are raised.
    """
    try:
        reserved = [
            torch.empty(math.ceil(copies * p.numel()), dtype=p.dtype, device=p.device)
            for p in model.parameters()
            if p.requires_grad
        ]
        loss().backward()
        del reserved
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        free_cache()
    return True


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on this computer."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_cache() -> None:
    """Hand back what the allocator keeps, so that larger or other blocks can be had."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
