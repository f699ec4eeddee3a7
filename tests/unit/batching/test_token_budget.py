"""The token budget: halved until a micro-batch fits, on every rank alike."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from orpo_dist.base.types import UserError
from orpo_dist.batching.steps import StepPlan
from orpo_dist.batching.token_budget import MOST_TOKENS, find_token_budget, fits_in_memory, halved


def plan_of(sizes: Sequence[int], **changes: Any) -> StepPlan:
    lengths = np.asarray([[size - 4, 2, 2] for size in sizes])
    return StepPlan(lengths, lengths[:, 1], global_batch=8, micro_batch=4, **changes)


class Memory:
    """Room for so many tokens; remembers what was tried."""

    def __init__(self, plan: StepPlan, tokens: int):
        self.plan, self.tokens = plan, tokens
        self.tried: list[int] = []

    def fits(self, pairs: Sequence[int]) -> bool:
        self.tried.append(int(self.plan.sizes[list(pairs)].sum()))
        return self.tried[-1] <= self.tokens


def test_no_budget_where_everything_fits() -> None:
    plan = plan_of([100] * 10)
    memory = Memory(plan, 400)
    assert find_token_budget(plan, memory.fits, bool) is None
    assert memory.tried == [400]


def test_halved_until_it_fits() -> None:
    plan = plan_of([100] * 10)
    memory = Memory(plan, 150)
    budget = find_token_budget(plan, memory.fits, bool)
    assert memory.tried == [400, 200, 100]
    assert budget == 90  # with a margin


def test_one_rank_out_of_memory_halves_all() -> None:
    plan = plan_of([100] * 10)
    answers = iter([False, True, False])  # 400, 200, and 300 between them
    assert find_token_budget(plan, lambda pairs: True, lambda fits: next(answers)) == 180


def test_what_lies_between_is_tried_too() -> None:
    plan = plan_of([100] * 10)
    memory = Memory(plan, 300)
    assert find_token_budget(plan, memory.fits, bool) == 270
    assert memory.tried == [400, 200, 300]


def test_no_trial_is_larger_than_a_gpu_gains_from() -> None:
    lengths = np.asarray([[996, 2, 2]] * 200)
    plan = StepPlan(lengths, lengths[:, 1], global_batch=200, micro_batch=200)
    memory = Memory(plan, 10**9)
    assert find_token_budget(plan, memory.fits, bool) == MOST_TOKENS
    assert memory.tried == [65_000]


def test_a_pair_that_never_fits_is_named() -> None:
    plan = plan_of([1000, 10])
    with pytest.raises(UserError, match="one pair of 1000 tokens"):
        find_token_budget(plan, Memory(plan, 50).fits, bool)


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fits_in_memory(torch.nn.Linear(2, 2), broken, 0)


def test_a_trial_leaves_no_gradient() -> None:
    model = torch.nn.Linear(2, 2)
    assert fits_in_memory(model, lambda: model(torch.ones(1, 2)).sum(), 2)
    assert model.weight.grad is None


SCARCE = """
import torch
from orpo_dist.batching.token_budget import fits_in_memory
model = torch.nn.Linear(8, 8)
for rows in (10, 10**9):
    print(fits_in_memory(model, lambda: model(torch.empty(rows, 8)).sum(), 2))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its own address space")
def test_memory_that_really_runs_out() -> None:
    limit = 8 * 2**30
    done = subprocess.run(
        [sys.executable, "-c", SCARCE],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("padded", [False, True])
def test_two_pairs_can_be_halved_and_one_cannot(padded: bool) -> None:
    assert sorted(halved(np.array([5, 9]), padded) or ()) == [[0], [1]]
    assert halved(np.array([5]), padded) is None
