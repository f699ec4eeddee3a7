"""Intervals against published values, and against how often they hold what they say they do."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from orpo_dist.base.intervals import (
    Z95,
    in_words,
    mcnemar,
    mean_interval,
    newcombe_interval,
    paired_interval,
    wilson_interval,
)


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


def test_tango_against_published_values() -> None:
    """Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness: 1 and 7 of 21 pairs."""
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, 0.0), abs=1e-3)
    assert paired_interval(7, 1, 21) == pytest.approx((0.0, 0.517), abs=1e-3)


@pytest.mark.parametrize(
    ("gained", "lost", "pairs"), [(9, 1, 21), (20, 6, 40), (12, 0, 12), (30, 55, 300)]
)
def test_the_score_fails_at_the_ends(gained: int, lost: int, pairs: int) -> None:
    """Its nuisance parameter by brute force: the likelihood's maximum on a fine grid."""
    for end in paired_interval(gained, lost, pairs):
        if abs(end) == 1:
            continue
        rare = np.linspace(max(0.0, -end), (1 - end) / 2, 400_001)[1:-1]
        likelihood = np.log(rare + end) * gained + np.log(rare) * lost
        likelihood += np.log1p(-2 * rare - end) * (pairs - gained - lost)
        best = rare[np.nanargmax(likelihood)]
        spread = math.sqrt(pairs * (2 * best + end - end**2))
        assert abs(gained - lost - pairs * end) / spread == pytest.approx(Z95, abs=1e-3)


def test_paired_interval_and_mcnemar_never_contradict() -> None:
    for pairs in (1, 2, 5, 12, 40):
        for gained in range(pairs + 1):
            for lost in range(pairs + 1 - gained):
                low, high = paired_interval(gained, lost, pairs)
                assert -1 <= low <= (gained - lost) / pairs <= high <= 1 and low < high
                assert (low > 0 or high < 0) == (mcnemar(gained, lost) < 0.05), (gained, lost)
    assert paired_interval(0, 0, 0) == (-1, 1)


@pytest.mark.parametrize("pairs", [5, 10, 30, 100])
def test_paired_interval_covers_what_it_says(pairs: int) -> None:
    """Of all outcomes with their chances: no simulation."""
    from scipy.stats import multinomial

    outcomes = [(b, c) for b in range(pairs + 1) for c in range(pairs + 1 - b)]
    ends = np.array([paired_interval(b, c, pairs) for b, c in outcomes])
    counts = np.array([(b, c, pairs - b - c) for b, c in outcomes])
    covered = []
    for first, second in ((0.3, 0.3), (0.2, 0.1), (0.4, 0.1), (0.1, 0.05), (0.6, 0.2)):
        chances = multinomial.pmf(counts, pairs, (first, second, 1 - first - second))
        held = (ends[:, 0] <= first - second) & (first - second <= ends[:, 1])
        covered.append(float(chances[held].sum()))
    assert min(covered) > 0.93, covered
    assert pairs < 30 or max(covered) < 0.985, covered


def test_words() -> None:
    assert in_words(-0.5, 1, "+.2f") == "(-0.50 to +1.00)"
    assert in_words(None, None, "+.2f") == "(one of them: no interval)"
