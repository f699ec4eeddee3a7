"""Two models on the same pairs: is one really better, or was it luck?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from orpo_dist.base.types import UserError

if TYPE_CHECKING:
    from orpo_dist.data import PairDataset
    from orpo_dist.evaluation.scores import ScoreTable

RESAMPLES = 5000
# Rows are left out for these reasons by one tokenizer and not by another.
BY_TOKENIZER = ("template_refused", "end_inside", "over_length")


def compare(first: ScoreTable, second: ScoreTable, seed: int = 0) -> dict[str, Any]:
    """The second model against the first, pair by pair.

    p_value: exact McNemar test that both are right equally often (binomial on the pairs that only
    one gets right). accuracy_difference, margin_difference: second minus first, each with a 95 %
    percentile bootstrap interval over pairs. Both tables hold the same N pairs.
    """
    from scipy.stats import binomtest

    if len(first) != len(second):
        raise UserError(f"{len(first)} and {len(second)} pairs cannot be compared pair by pair")
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    apart = only_first + only_second
    return {
        "pairs": len(first),
        "both": int((first.correct & second.correct).sum()),
        "only_first": only_first,
        "only_second": only_second,
        "neither": int((~first.correct & ~second.correct).sum()),
        "p_value": float(binomtest(only_first, apart, 0.5).pvalue) if apart else 1.0,
        **_difference("accuracy", second.correct.astype(float) - first.correct, seed),
        **_difference("margin", second.margin - first.margin, seed),
    }


def _difference(name: str, differences: np.ndarray, seed: int) -> dict[str, float]:
    low, high = bootstrap_interval(differences, seed)
    return {
        f"{name}_difference": float(differences.mean()),
        f"{name}_difference_low": low,
        f"{name}_difference_high": high,
    }


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of N values."""
    from scipy.stats import bootstrap

    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 10**7 // len(values)),  # resamples at once: 80 MB
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for there being several of them (Holm 1979)."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = least
    return adjusted


def why_not_comparable(first: PairDataset, second: PairDataset) -> str | None:
    """None if row i is the same pair in both, else why that cannot be known."""
    if len(first) == len(second) and first.digest() == second.digest():
        return None
    skips = [
        {reason: entry["count"] for reason, entry in pairs.report["skipped"].items()}
        for pairs in (first, second)
    ]
    same = skips[0] == skips[1] and not any(reason in skips[0] for reason in BY_TOKENIZER)
    if len(first) == len(second) and same:
        return None
    return "their tokenizers or templates leave out different rows of the data"
