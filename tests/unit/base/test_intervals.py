"""Intervals against published values, and against how often they hold what they say they do."""

from __future__ import annotations

import math
import random

import pytest

from orpo_dist.base.intervals import mean_interval, newcombe_interval, wilson_interval


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962), (81, 263, 0.2553, 0.3662),
    ],
)  # fmt: skip
def test_wilson_against_published_values(hits: int, trials: int, low: float, high: float) -> None:
    """The last is of Newcombe 1998 (I), table I."""
    assert wilson_interval(hits, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_stays_in_its_range() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for hits in (0, 7):
        low, high = wilson_interval(hits, 7)
        assert 0 <= low < high <= 1 and (low if hits == 0 else 1 - high) < 1e-12
    low, high = wilson_interval(2.5, 5)  # half successes: ties
    assert low + high == pytest.approx(1)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926), ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)  # fmt: skip
def test_newcombe_against_published_values(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe 1998 (II), table II, method 10."""
    assert newcombe_interval(first, second) == pytest.approx((low, high), abs=1e-4)
    assert newcombe_interval(second, first) == pytest.approx((-high, -low), abs=1e-4)


@pytest.mark.parametrize(
    ("values", "quantile"), [([1.0, 2.0, 3.0], 4.30265), ([4.0, 5.0], 12.7062)]
)
def test_mean_against_the_table_of_student(values: list[float], quantile: float) -> None:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = quantile * spread / math.sqrt(len(values))
    assert mean_interval(values) == pytest.approx((mean - half, mean + half), rel=1e-5)


def test_the_interval_of_a_mean_covers_what_it_says() -> None:
    rng = random.Random(0)  # noqa: S311
    covered = 0
    for _ in range(2000):
        low, high = mean_interval([rng.gauss(1.0, 2.0) for _ in range(4)])
        covered += low <= 1.0 <= high
    assert 0.935 < covered / 2000 < 0.965
