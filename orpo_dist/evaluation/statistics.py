"""Figures of a table of scores: accuracy, spread, length bias, calibration. No torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from orpo_dist.base.intervals import newcombe_interval, wilson_interval

if TYPE_CHECKING:
    from orpo_dist.evaluation.scores import ScoreTable

QUANTILES = (5, 25, 50, 75, 95)
BINS = 30  # of a histogram
CONFIDENCES = 10  # bins between a coin's toss and certainty


def headline(table: ScoreTable) -> dict[str, Any]:
    """Accuracy with its 95 % interval, perplexity of the chosen answers, mean margin, log-odds."""
    return {
        **accuracy(table.correct),
        "perplexity": perplexity(table.nll_sum.sum(), table.chosen_tokens.sum()),
        "mean_margin": float(table.margin.mean()),
        "mean_log_odds": float(table.log_odds.mean()),
    }


def summarise(table: ScoreTable) -> dict[str, Any]:
    """The headline and what lies behind it, as plain JSON values."""
    return {
        **headline(table),
        "margin": distribution(table.margin),
        "log_odds": distribution(table.log_odds),
        "length_bias": length_bias(table),
        "calibration": calibration(table),
    }


def accuracy(correct: np.ndarray) -> dict[str, Any]:
    """Share of pairs told apart, with its Wilson interval."""
    hits, pairs = int(correct.sum()), len(correct)
    low, high = wilson_interval(hits, pairs)
    return {
        "pairs": pairs,
        "preference_accuracy": hits / pairs if pairs else None,
        "accuracy_low": low,
        "accuracy_high": high,
    }


def perplexity(nll: float, tokens: float) -> float | None:
    """None where there is no likelihood to speak of (nan)."""
    if math.isnan(nll):
        return None
    return math.exp(min(700.0, nll / tokens))


def distribution(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation, quantiles and a histogram."""
    counts, edges = np.histogram(values, BINS)
    return {
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "quantiles": dict(
            zip(map(str, QUANTILES), np.percentile(values, QUANTILES).tolist(), strict=True)
        ),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def length_bias(table: ScoreTable) -> dict[str, Any]:
    """Accuracy where the chosen answer is the longer one, where the rejected is, and neither.

    gap: the first minus the second with its 95 % interval; far from 0 the model goes by length.
    spearman: rank correlation of the margin with how much longer the chosen answer is.
    """
    extra = table.chosen_tokens.astype(np.int64) - table.rejected_tokens
    parts = {
        "longer_chosen": accuracy(table.correct[extra > 0]),
        "longer_rejected": accuracy(table.correct[extra < 0]),
        "equal": accuracy(table.correct[extra == 0]),
    }
    longer, shorter = parts["longer_chosen"], parts["longer_rejected"]
    found: dict[str, Any] = {**parts, "gap": None, "spearman": _spearman(extra, table.margin)}
    if longer["pairs"] and shorter["pairs"]:
        found["gap"] = longer["preference_accuracy"] - shorter["preference_accuracy"]
        found["gap_low"], found["gap_high"] = newcombe_interval(
            (int(table.correct[extra > 0].sum()), longer["pairs"]),
            (int(table.correct[extra < 0].sum()), shorter["pairs"]),
        )
    return found


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    from scipy.stats import spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def calibration(table: ScoreTable) -> dict[str, Any]:
    """How often the model is right where it is sure: sigmoid of |log-odds| is its confidence.

    expected_error: mean distance of accuracy and confidence over the bins, weighted by pairs (ECE,
    Guo et al. 2017). brier: mean squared error of sigmoid(log-odds) as the chance of "chosen".
    """
    confidence = 1 / (1 + np.exp(-np.abs(table.log_odds)))
    place = np.minimum((2 * (confidence - 0.5) * CONFIDENCES).astype(int), CONFIDENCES - 1)
    bins = []
    for number in range(CONFIDENCES):
        mine = place == number
        low = 0.5 + number / (2 * CONFIDENCES)
        sure = float(confidence[mine].mean()) if mine.any() else None
        bins.append({"from": low, "confidence": sure, **accuracy(table.correct[mine])})
    off = sum(
        part["pairs"] * abs(part["preference_accuracy"] - part["confidence"])
        for part in bins
        if part["pairs"]
    )
    miss = np.where(table.correct, 1 - confidence, confidence)
    return {
        "expected_error": float(off / len(table)),
        "brier": float(np.mean(miss**2)),
        "mean_confidence": float(confidence.mean()),
        "bins": bins,
    }
