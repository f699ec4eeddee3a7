"""How sure a measured share or mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def in_words(low: float | None, high: float | None, form: str) -> str:
    """An interval in brackets, its ends in a format; also where there is none."""
    if low is None or high is None:
        return "(one of them: no interval)"
    return f"({low:{form}} to {high:{form}})"


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


def paired_interval(gained: int, lost: int, pairs: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the same pairs (Tango 1998, by score).

    gained, lost: pairs that only the second, only the first of the two has. It reaches 0 wherever
    the exact McNemar test (``mcnemar``) finds nothing at 5 %: the two never contradict each other.
    """
    if pairs == 0:
        return -1.0, 1.0
    low, high = (_tango_end(gained, lost, pairs, side) for side in (-1, 1))
    if mcnemar(gained, lost) >= 0.05:
        return min(low, 0.0), max(high, 0.0)
    return low, high


def mcnemar(gained: int, lost: int) -> float:
    """p-value of the exact test that both are alike: a coin's, over pairs that one alone has."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def _tango_end(gained: int, lost: int, pairs: int, side: int) -> float:
    """The difference, below (side -1) or above, whose score test just fails at 95 %."""
    share = (gained - lost) / pairs

    def beyond(difference: float) -> float:
        a = 2 * pairs
        b = (2 * pairs - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        rare = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        spread = pairs * (2 * rare + difference * (1 - difference))
        return abs(gained - lost - pairs * difference) - Z95 * math.sqrt(max(0.0, spread))

    inside, outside = share, float(side)
    if beyond(outside) <= 0:
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if beyond(middle) <= 0 else (inside, middle)
    return inside


def mean_interval(
    values: Sequence[float], low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """95 % interval of the mean of at least two values between low and high (Student 1908).

    Where the values have an end, Student's t is taken on a scale on which they have none, the
    logarithm of the distance to it or, between two ends, the logit, and turned back: so the
    interval holds the mean and stays between the ends. Values that are all the same give no width.
    """
    mean, half = sum(values) / len(values), _student_half(values)
    if not half:
        return mean, mean
    scale = _Scale(low, high)
    half *= scale.slope(mean)
    centre = scale.to(mean)
    return scale.back(centre - half), scale.back(centre + half)


def mean_share_interval(shares: Sequence[float], trials: int) -> tuple[float, float]:
    """95 % interval of the mean of shares that were each counted over the same ``trials``.

    Two things make a share unsure: which trials there are, and, with several shares, what else
    differs between them, as seeds do. The first has Wilson's interval, which one share keeps; both
    add up as independent errors do, on the logit scale, so that the interval stays in [0, 1] and is
    never narrower than Wilson's.
    """
    mean = sum(shares) / len(shares)
    low, high = wilson_interval(mean * trials, trials)
    half = _student_half(shares) if len(shares) > 1 else 0.0
    if not half:  # also where all shares are 0, or all are 1
        return low, high
    scale = _Scale(0.0, 1.0)
    half *= scale.slope(mean)
    centre = scale.to(mean)
    return (
        min(low, scale.back(centre - math.hypot(half, centre - scale.to(low)))),
        max(high, scale.back(centre + math.hypot(half, scale.to(high) - centre))),
    )


def _student_half(values: Sequence[float]) -> float:
    """Half the width of Student's 95 % interval of the mean."""
    count = len(values)
    assert count > 1
    if min(values) == max(values):
        return 0.0
    from scipy.stats import t as student

    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return float(student.ppf(0.975, count - 1)) * math.sqrt(variance / count)


@dataclass(frozen=True)
class _Scale:
    """From numbers between low and high to all numbers, and back."""

    low: float
    high: float

    def to(self, value: float) -> float:
        if math.isfinite(self.low) and math.isfinite(self.high):
            if value in (self.low, self.high):
                return math.copysign(math.inf, value - self.low or -1.0)
            return math.log((value - self.low) / (self.high - value))
        if math.isfinite(self.low):
            return math.log(value - self.low) if value > self.low else -math.inf
        if math.isfinite(self.high):
            return -math.log(self.high - value) if value < self.high else math.inf
        return value

    def slope(self, value: float) -> float:
        """Of ``to`` at a value between the ends."""
        return (
            sum(1 / abs(value - end) for end in (self.low, self.high) if math.isfinite(end)) or 1.0
        )

    def back(self, value: float) -> float:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return self.low + (self.high - self.low) * _expit(value)
        if math.isfinite(self.low):
            return self.low + _exp(value)
        if math.isfinite(self.high):
            return self.high - _exp(-value)
        return value


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _expit(value: float) -> float:
    return 1 / (1 + _exp(-value)) if value > 0 else _exp(value) / (1 + _exp(value))
