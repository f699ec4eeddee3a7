"""The plan: every pair once an epoch, the same steps on any number of ranks."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_dist.batching.steps import FILLER, StepPlan, Work, nll_token_counts, repeats_of


def make_plan(pairs: int, **changes: object) -> StepPlan:
    lengths = np.random.default_rng(pairs).integers(2, 60, (pairs, 3)).astype(np.int32)
    settings = {"global_batch": 8, "micro_batch": 2, "seed": 3, **changes}
    return StepPlan(lengths, lengths[:, 1], **settings)  # type: ignore[arg-type]


def pairs_of(plan: StepPlan, epoch: int, world_size: int) -> list[list[int]]:
    """The pairs of each step, gathered over all ranks, sorted."""
    ranks = [plan.epoch(epoch, rank) for rank in range(world_size)]
    return [
        sorted(i for step in steps for micro in step.micro_batches for i in micro if i != FILLER)
        for steps in zip(*ranks, strict=True)
    ]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 70), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5))
def test_any_topology_trains_on_the_same_steps(
    pairs: int, batch: int, micro: int, world: int
) -> None:
    one = make_plan(pairs, global_batch=batch, micro_batch=batch)
    many = make_plan(pairs, global_batch=batch, micro_batch=micro, world_size=world)
    expected = pairs_of(one, 0, 1)
    assert pairs_of(many, 0, world) == expected
    assert sorted(itertools.chain(*expected)) == list(range(pairs))
    assert len(expected) == one.steps_per_epoch


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 4),
    st.integers(1, 6),
    st.none() | st.integers(1, 400),
    st.booleans(),
)
def test_ranks_have_equally_many_micro_batches_within_the_limits(
    pairs: int, micro: int, world: int, budget: int | None, padded: bool
) -> None:
    plan = make_plan(
        pairs,
        global_batch=12,
        micro_batch=micro,
        world_size=world,
        token_budget=budget,
        padded=padded,
    )
    for rank in range(world):
        for step in plan.epoch(0, rank):
            for real in (m for m in step.micro_batches if m != (FILLER,)):
                sizes = plan.sizes[list(real)]
                tokens = sizes.max() * len(real) if padded else sizes.sum()
                assert len(real) == 1 or budget is None or tokens <= budget
    for steps in zip(*(plan.epoch(1, rank) for rank in range(world)), strict=True):
        assert len({len(step.micro_batches) for step in steps}) == 1
        assert all(1 <= len(m) <= micro for step in steps for m in step.micro_batches)
        assert len({(step.total_pairs, step.total_nll_tokens) for step in steps}) == 1


def test_a_budget_does_not_change_what_a_step_trains_on() -> None:
    assert pairs_of(make_plan(50, token_budget=90), 0, 1) == pairs_of(make_plan(50), 0, 1)


def test_the_fewest_micro_batches_that_fit_are_made() -> None:
    lengths = np.asarray([[10, 5, 5]] * 6 + [[200, 30, 30]])
    plan = StepPlan(lengths, lengths[:, 1], global_batch=7, micro_batch=7, token_budget=60)
    (step,) = plan.epoch(0)
    assert sorted(map(len, step.micro_batches)) == [1, 3, 3]
    assert (6,) in step.micro_batches  # over the budget, hence alone


def test_the_largest_micro_batch_bounds_all_others() -> None:
    for padded in (False, True):
        for budget in (None, 150):
            plan = make_plan(60, micro_batch=3, token_budget=budget, padded=padded)
            largest = plan.sizes[plan.largest()].sum()
            for step in plan.epoch(0):
                assert all(plan.sizes[list(m)].sum() <= largest for m in step.micro_batches)


def test_the_work_of_a_step_is_counted_over_all_ranks() -> None:
    lengths = np.asarray([[4, 2, 3], [10, 1, 1], [1, 6, 2]])
    plan = StepPlan(lengths, lengths[:, 1], global_batch=3, micro_batch=1, world_size=3)
    works = {next(plan.epoch(0, rank)).work for rank in range(3)}
    assert works == {Work(tokens=30, scored=15, padded=2 * (7 + 11 + 7), seen=134.0)}
    at_once = dataclasses.replace(plan, micro_batch=3, world_size=1)
    assert next(at_once.epoch(0)).work.padded == 2 * 3 * 11


def test_counts_of_a_step_are_those_of_its_pairs() -> None:
    plan = make_plan(20)
    for step in plan.epoch(0):
        indices = list(itertools.chain(*step.micro_batches))
        assert step.total_pairs == len(indices)
        assert step.total_nll_tokens == plan.nll_tokens[indices].sum()


def test_epochs_differ_and_are_reproducible() -> None:
    plan = make_plan(40)
    first = list(plan.epoch(0))
    assert first == list(make_plan(40).epoch(0))
    assert first != list(plan.epoch(1))
    assert first != list(make_plan(40, seed=4).epoch(0))


def test_evaluation_order_covers_every_pair_once_longest_first() -> None:
    plan = make_plan(21)
    steps = [[i for m in step.micro_batches for i in m] for step in plan.in_order()]
    assert sorted(itertools.chain(*steps)) == list(range(21))
    longest = [plan.lengths[step].sum(1).max() for step in steps]
    shortest = [plan.lengths[step].sum(1).min() for step in steps]
    assert all(low >= high for low, high in zip(shortest[:-1], longest[1:], strict=True))


@pytest.mark.parametrize(
    ("weights", "rows", "size"),
    [([1.0, 2.0], [10, 20], 50), ([1.0, 0.5], [20, 30], 35), ([2.5, 1.0], [20, 30], 80)],
)
def test_source_weights_set_how_often_rows_appear(
    weights: list[float], rows: list[int], size: int
) -> None:
    source_ids = np.repeat([0, 1], rows)
    repeats = repeats_of(source_ids, weights)
    plan = make_plan(len(source_ids), repeats=repeats)
    for epoch in (0, 1):
        counts = np.bincount(plan.order(epoch), minlength=len(source_ids))
        assert counts.sum() == size == plan.pairs_per_epoch
        assert repeats is not None
        assert (np.abs(counts - repeats) < 1).all()


def test_equal_weights_need_no_repeats() -> None:
    assert repeats_of(np.zeros(3, dtype=int), None) is None
    assert repeats_of(np.zeros(3, dtype=int), [1.0]) is None


def test_nll_tokens_leave_out_the_first_token_of_a_sequence() -> None:
    lengths = np.asarray([[5, 3, 9]])
    assert nll_token_counts(lengths, "completion").tolist() == [3]
    assert nll_token_counts(lengths, "prompt_and_completion").tolist() == [7]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.05, 3), min_size=1, max_size=4), st.integers(1, 9))
def test_fractional_weights_keep_to_the_shares_of_their_sources(
    weights: list[float], rows: int
) -> None:
    source_ids = np.repeat(np.arange(len(weights)), 10 * rows)
    repeats = np.asarray(weights)[source_ids]
    plan = make_plan(len(source_ids), repeats=repeats)
    order = plan.order(0)
    assert len(order) == plan.pairs_per_epoch
    counts = np.bincount(order, minlength=len(source_ids))
    assert (np.abs(counts - repeats) < 1 + 1e-9).all()  # whole parts always, one more at most
    chances = repeats % 1
    for chance in set(chances.tolist()):  # of one source, or of several alike
        mine = chances == chance
        assert counts[mine].sum() == pytest.approx(repeats[mine].sum(), abs=2)


def test_every_pair_of_a_source_has_the_same_chance() -> None:
    repeats = np.asarray([0.3] * 10 + [0.6] * 10)
    plan = make_plan(20, repeats=repeats)
    counts = sum(np.bincount(plan.order(epoch), minlength=20) for epoch in range(2000))
    assert counts / 2000 == pytest.approx(repeats, abs=0.05)
