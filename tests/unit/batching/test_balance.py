"""Dealing: balance over ranks, the cost of a pair, and speed at scale."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from orpo_dist.batching.balance import (
    attention_pairs,
    deal_to_micro_batches,
    deal_to_ranks,
    packing_cost,
)
from orpo_dist.batching.steps import StepPlan


def hh_like_lengths(pairs: int, seed: int = 0) -> np.ndarray:
    """Lengths like those of HH harmless: means of about 150, 41 and 52 tokens, long tails."""
    draw = np.random.default_rng(seed)
    means, spread = np.log([110, 28, 36]), [0.8, 0.9, 0.9]
    return np.clip(draw.lognormal(means, spread, (pairs, 3)), 2, [600, 200, 200]).astype(np.int64)


def balance(costs: np.ndarray, dealt: list[list[int]]) -> float:
    loads = np.asarray([costs[rank].sum() for rank in dealt])
    return float(loads.mean() / loads.max())


@pytest.mark.parametrize(("ranks", "pairs"), [(8, 64), (64, 512), (512, 4096)])
def test_no_rank_waits(ranks: int, pairs: int) -> None:
    for seed in range(5):
        costs = packing_cost(hh_like_lengths(pairs, seed), hidden_size=576)
        dealt = deal_to_ranks(costs, ranks, pairs // ranks)
        assert sorted(itertools.chain(*dealt)) == list(range(pairs))
        assert max(map(len, dealt)) == pairs // ranks
        assert balance(costs, dealt) > 0.98
        in_turns = [list(range(rank, pairs, ranks)) for rank in range(ranks)]
        assert balance(costs, in_turns) < 0.9  # what dealing by turns would give


def test_one_long_pair_is_all_that_its_rank_gets() -> None:
    costs = np.asarray([100.0] + [10.0] * 10)
    dealt = deal_to_ranks(costs, 2, 10)
    assert sorted(map(len, dealt)) == [1, 10]


def test_every_visible_key_is_counted() -> None:
    prompt, chosen, rejected = 5, 3, 4
    total = prompt + chosen + rejected
    visible = np.tril(np.ones((total, total)))
    visible[prompt + chosen :, prompt : prompt + chosen] = 0
    counted = attention_pairs(np.asarray([[prompt, chosen, rejected]]))[0]
    assert counted == pytest.approx(visible.sum(), abs=total / 2)  # the diagonal counts half


def planned(pairs: int) -> int:
    """How many pairs come in an epoch over so many."""
    lengths = hh_like_lengths(pairs)
    plan = StepPlan(lengths, lengths[:, 1], 512, 8, world_size=64, token_budget=2048)
    return sum(step.total_pairs for step in plan.epoch(0, rank=5))


def test_every_pair_of_a_large_epoch_comes() -> None:
    assert planned(100_123) == 100_123


@pytest.mark.timing
def test_a_million_pairs_are_planned_in_seconds() -> None:
    start = time.perf_counter()
    assert planned(1_000_000) == 1_000_000
    assert time.perf_counter() - start < 30  # about 4 s on an idle machine


def test_padded_pairs_take_as_few_micro_batches_as_hold_them() -> None:
    sizes = np.array([10, 10, 10, 10, 10, 10])
    for count, most in ((4, 2), (6, 2), (6, 3)):
        dealt = deal_to_micro_batches([list(range(count))], sizes, most, np.inf, padded=True)
        assert [len(one) for one in dealt[0]] == [most] * (count // most)
