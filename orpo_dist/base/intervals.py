"""How sure a measured share or mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson 1927); half successes may count."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe_interval(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """95 % interval of the difference of two independent shares (Newcombe 1998, method 10).

    first, second: (successes, trials).
    """
    (low, high), (other_low, other_high) = wilson_interval(*first), wilson_interval(*second)
    share, other = first[0] / first[1], second[0] / second[1]
    return (
        share - other - math.hypot(share - low, other_high - other),
        share - other + math.hypot(high - share, other - other_low),
    )


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of at least two values (Student 1908)."""
    count = len(values)
    assert count > 1
    from scipy.stats import t as student

    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(student.ppf(0.975, count - 1)) * math.sqrt(variance / count)
    return mean - half, mean + half
