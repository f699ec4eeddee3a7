"""Two models on the same pairs: is one really better, or was it luck?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from orpo_dist.base.intervals import mcnemar, mean_interval, paired_interval
from orpo_dist.base.types import UserError

if TYPE_CHECKING:
    from orpo_dist.data import PairDataset
    from orpo_dist.evaluation.scores import ScoreTable

MARGIN_ENDS = ("margin_difference_low", "margin_difference_high")
# Rows are left out for these reasons by one tokenizer and not by another.
BY_TOKENIZER = ("template_refused", "end_inside", "over_length")


def compare(first: ScoreTable, second: ScoreTable) -> dict[str, Any]:
    """The second model against the first, pair by pair.

    p_value: exact McNemar test that both are right equally often (binomial on the pairs that only
    one gets right). accuracy_difference, margin_difference: second minus first, with Tango's and
    Student's 95 % interval; None where one pair gives none. Both tables hold the same N pairs.
    """
    if len(first) != len(second):
        raise UserError(f"{len(first)} and {len(second)} pairs cannot be compared pair by pair")
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    low, high = paired_interval(only_second, only_first, len(first))
    margins = second.margin - first.margin
    return {
        "pairs": len(first),
        "both": int((first.correct & second.correct).sum()),
        "only_first": only_first,
        "only_second": only_second,
        "neither": int((~first.correct & ~second.correct).sum()),
        "p_value": mcnemar(only_second, only_first),
        "accuracy_difference": (only_second - only_first) / len(first),
        "accuracy_difference_low": low,
        "accuracy_difference_high": high,
        "margin_difference": float(margins.mean()),
        **dict(zip(MARGIN_ENDS, interval_of_mean(margins), strict=True)),
    }


def interval_of_mean(values: np.ndarray) -> tuple[float | None, float | None]:
    """95 % interval of the mean of N values by Student's t; of a single one nothing is known."""
    return mean_interval(values.tolist()) if len(values) > 1 else (None, None)


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
