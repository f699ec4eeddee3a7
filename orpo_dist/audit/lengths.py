"""Lengths: histograms, who wins by length, and what every truncation setting would cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from orpo_dist.base.intervals import wilson_interval
from orpo_dist.data import Limits

PARTS = ("prompt", "chosen", "rejected")
CANDIDATES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SETTINGS = ("max_prompt_length", "max_completion_length", "max_seq_length")
BINS = 30


def figures(lengths: np.ndarray) -> dict[str, Any]:
    """All figures of (N, 3) lengths that need no limits, as plain JSON values."""
    return {
        "lengths": summarise(lengths),
        "length_bias": length_bias(lengths),
        "histograms": histograms(lengths),
    }


def summarise(lengths: np.ndarray) -> dict[str, dict[str, int]]:
    """Median, 95th percentile, maximum and total of (N, 3) lengths, by part."""
    found = {}
    for part, column in zip(PARTS, lengths.T, strict=True):
        median, p95 = np.percentile(column, [50, 95], method="higher")
        found[part] = {
            "median": int(median),
            "p95": int(p95),
            "max": int(column.max()),
            "total": int(column.sum()),
        }
    return found


def histograms(lengths: np.ndarray) -> dict[str, list[int]]:
    """Counts of (N, 3) lengths in common bins, whose ``edges`` grow evenly on a log scale."""
    edges = np.unique(np.geomspace(1, lengths.max() + 1, BINS).round().astype(int))
    found = {"edges": edges.tolist()}
    for part, column in zip(PARTS, lengths.T, strict=True):
        found[part] = np.histogram(column.clip(1), edges)[0].tolist()
    return found


def length_bias(lengths: np.ndarray) -> dict[str, float]:
    """How well "the longer answer wins" predicts the label, ties left out, with 95 % Wilson."""
    chosen, rejected = lengths[:, 1], lengths[:, 2]
    longer, decided = int((chosen > rejected).sum()), int((chosen != rejected).sum())
    low, high = wilson_interval(longer, decided)
    return {
        "chosen_longer": longer,
        "rejected_longer": decided - longer,
        "equal": len(lengths) - decided,
        "accuracy": longer / decided if decided else 0.5,
        "low": low,
        "high": high,
    }


def kept(lengths: np.ndarray, limits: Limits) -> np.ndarray:
    """(N, 3) lengths after truncation: the arithmetic of ``Encoder``, for all pairs at once."""
    prompt, answers = lengths[:, 0], lengths[:, 1:]
    longest = lengths.max(1)
    sequence = np.full_like(prompt, limits.sequence) if limits.sequence else longest * 2
    room = np.minimum(answers.max(1), sequence // 2) if limits.prompt is None else 2
    prompt = np.minimum(prompt, np.minimum(limits.prompt or prompt, sequence - room))
    budget = np.minimum(limits.completion or longest, sequence - prompt)
    return np.column_stack([prompt, np.minimum(answers, budget[:, None])])


def lost_difference(lengths: np.ndarray, shared: np.ndarray, limits: Limits) -> np.ndarray:
    """(N,) bool: pairs whose answers are the same once they are cut.

    shared: (N,) tokens at the beginning that both answers have in common, end token apart.
    """
    after = kept(lengths, limits)
    cut = (after != lengths).any(1)
    return cut & (after[:, 1] == after[:, 2]) & (shared >= after[:, 1] - 1)


def truncation_table(
    lengths: np.ndarray, shared: np.ndarray, current: Limits
) -> list[dict[str, Any]]:
    """What this configuration, and each limit alone, would cut. lengths: (N, 3) tokens."""
    whole = (lengths[:, 0] + lengths[:, 1:].max(1)).max()
    rows: list[tuple[str, int | None, Limits]] = [(_named(current), None, current)]
    for value in CANDIDATES:
        if value < lengths[:, 0].max():
            rows.append(("max_prompt_length", value, Limits(prompt=value)))
        if value < lengths[:, 1:].max():
            rows.append(("max_completion_length", value, Limits(completion=value)))
        if value < whole:
            rows.append(("max_seq_length", value, Limits(sequence=value)))
    rows[1:] = sorted(rows[1:], key=lambda row: SETTINGS.index(row[0]))  # stable: values ascend
    return [
        {"setting": name, "value": value, **_cost(lengths, shared, limits)}
        for name, value, limits in rows
    ]


def _named(limits: Limits) -> str:
    """The limits of a configuration in words, for the first row of the table."""
    said = [
        f"{part} {value}"
        for part in ("prompt", "completion", "sequence")
        if (value := getattr(limits, part)) is not None
    ]
    return f"now: {', '.join(said) or 'no limit'}"


def _cost(lengths: np.ndarray, shared: np.ndarray, limits: Limits) -> dict[str, Any]:
    lost = lengths - kept(lengths, limits)
    return {
        "pairs_cut": int((lost > 0).any(1).sum()),
        "share_cut": float((lost > 0).any(1).mean()),
        "tokens_lost": int(lost.sum()),
        "share_lost": float(lost.sum() / lengths.sum()),
        "pairs_without_difference": int(lost_difference(lengths, shared, limits).sum()),
    }
