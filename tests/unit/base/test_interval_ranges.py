"""Intervals of means: inside their range, never too narrow, and right as often as they say."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orpo_dist.base.intervals import mean_interval, mean_share_interval, wilson_interval

T = {2: 12.7062, 3: 4.30265, 5: 2.77645}  # 97.5 % quantiles of Student's t, by count


def test_without_ends_it_is_students_own() -> None:
    values = [0.80, 0.82, 0.81]
    half = T[3] * statistics.stdev(values) / math.sqrt(3)
    assert mean_interval(values) == pytest.approx((0.81 - half, 0.81 + half), rel=1e-5)


def test_towards_an_end_it_narrows() -> None:
    """Two seeds, whose interval on the line would go from -0.559 to 1.559."""
    low, high = mean_interval([1 / 3, 2 / 3], 0.0, 1.0)
    half = T[2] * statistics.stdev([1 / 3, 2 / 3]) / math.sqrt(2) / 0.25  # on the logit scale
    ends = (1 / (1 + math.exp(half)), 1 / (1 + math.exp(-half)))
    assert (low, high) == pytest.approx(ends, rel=1e-4)
    assert 0 < low < 0.01 and 0.99 < high < 1
    below, above = mean_interval([3.0, 9.0], 1.0)  # perplexities
    assert 1 < below < 6 < above and mean_interval([3.0, 9.0])[0] < 0
    assert mean_interval([-3.0, -9.0], high=0.0)[1] < 0 < mean_interval([-3.0, -9.0])[1]


def test_one_share_has_wilsons_and_equal_ones_too() -> None:
    for shares in ([0.4583], [0.4583, 0.4583], [0.0, 0.0], [1.0, 1.0, 1.0]):
        expected = wilson_interval(shares[0] * 24, 24)
        assert mean_share_interval(shares, 24) == pytest.approx(expected, abs=1e-12)
        assert expected[1] - expected[0] > 0.1


@given(
    st.integers(1, 3000).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n), min_size=1, max_size=8))
    )
)
@example((24, [0, 24]))
@example((1, [0, 1]))
def test_shares_keep_their_range_and_the_width_of_the_pairs(drawn: tuple[int, list[int]]) -> None:
    pairs, right = drawn
    shares = [count / pairs for count in right]
    low, high = mean_share_interval(shares, pairs)
    mean = sum(shares) / len(shares)
    least = wilson_interval(mean * pairs, pairs)
    assert 0 <= low <= least[0] + 1e-12 and least[1] - 1e-12 <= high <= 1
    assert low - 1e-12 <= mean <= high + 1e-12
    assert 0 < high - low <= 1


@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=6))
def test_numbers_with_an_end_keep_it(values: list[float]) -> None:
    low, high = mean_interval(values, 1.0)
    mean = sum(values) / len(values)
    assert 1 <= low <= mean * (1 + 1e-9) and mean * (1 - 1e-9) <= high


@pytest.mark.parametrize(("seeds", "pairs", "spread"), [
    (1, 24, 0.0), (2, 24, 0.3), (3, 24, 0.3), (3, 200, 0.0), (3, 200, 0.3), (5, 1000, 0.3),
])  # fmt: skip
def test_the_truth_is_inside_as_often_as_said(seeds: int, pairs: int, spread: float) -> None:
    """Seeds that judge the same pairs: each pair is as hard for all of them, each seed differs.

    The truth is the accuracy over all pairs and seeds there could be; with one seed, of that seed.
    """
    rng = np.random.default_rng(0)
    inside, rounds = 0, 1500
    for _ in range(rounds):
        level = rng.uniform(-1.0, 1.5)
        hardness = rng.normal(size=pairs)
        shift = spread * rng.normal(size=(seeds, 1))
        right = level + shift + 0.5 * rng.normal(size=(seeds, pairs)) > hardness
        truth = statistics.NormalDist().cdf(level / math.sqrt(1 + 0.25 + spread**2))
        low, high = mean_share_interval(right.mean(1).tolist(), pairs)
        inside += low <= truth <= high
    assert 0.94 <= inside / rounds <= 1.0
