"""Ratings of one or more people -> win rate, quality, agreement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orpo_dist.base.intervals import in_words, wilson_interval
from orpo_dist.base.types import UserError
from orpo_dist.compare.sheet import Sheet
from orpo_dist.evaluation.paired import interval_of_mean

CHOICES = ("left", "tie", "right")
MARKS = (1, 5)


@dataclass(frozen=True)
class Ratings:
    """What one person said of K items; arrays of shape (K,), nan where nothing was said.

    points: 1 where b is better, 0 where a is, 0.5 for a tie. quality_a, quality_b: 1 to 5.
    left: 1 where the left answer was chosen, 0 where the right one was.
    """

    rater: str
    points: np.ndarray
    quality_a: np.ndarray
    quality_b: np.ndarray
    left: np.ndarray


def read_ratings(path: Path, sheet: Sheet) -> Ratings:
    """One saved file, unblinded. Raises ``UserError`` that names the entry at fault."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rater, entries, of = content["rater"], content["ratings"], content["comparison"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"ratings {path}: cannot be read ({error})") from error
    if of != sheet.id:
        raise UserError(f"ratings {path}: belong to another comparison than the key")
    if not isinstance(rater, str) or not rater.strip() or not isinstance(entries, list):
        raise UserError(f"ratings {path}: need a rater and a list of ratings")
    found = Ratings(rater.strip(), *(np.full(len(sheet.items), np.nan) for _ in range(4)))
    for number, entry in enumerate(entries, start=1):
        if not _is_rating(entry, len(sheet.items)):
            raise UserError(f"ratings {path}: entry {number} is no rating of an item")
        _note(found, entry, sheet.items[entry["item"]].swapped)
    return found


def _is_rating(entry: Any, items: int) -> bool:
    if not isinstance(entry, dict) or entry.get("choice") not in CHOICES:
        return False
    item, low, high = entry.get("item"), *MARKS
    marks = [entry.get("left"), entry.get("right")]
    return (
        type(item) is int
        and 0 <= item < items
        and all(mark is None or (type(mark) is int and low <= mark <= high) for mark in marks)
    )


def _note(found: Ratings, entry: dict[str, Any], swapped: bool) -> None:
    item, choice = entry["item"], entry["choice"]
    right = {"left": 0.0, "tie": 0.5, "right": 1.0}[choice]
    found.points[item] = 1 - right if swapped else right
    if choice != "tie":
        found.left[item] = float(choice == "left")
    left_mark, right_mark = (
        np.nan if entry.get(s) is None else entry[s] for s in ("left", "right")
    )
    marks = (right_mark, left_mark) if swapped else (left_mark, right_mark)
    found.quality_a[item], found.quality_b[item] = marks


def tally(sheet: Sheet, ratings: Sequence[Ratings]) -> dict[str, Any]:
    """Win rate of b over a, and how much the raters agree.

    A prompt counts once, by the mean of its raters' points (a tie is half a win). win_rate: with a
    95 % Wilson interval over prompts, on the safe side where there are ties. p_value: exact sign
    test over the prompts that are not tied. agreement: share of equal choices over all pairs of
    raters of a prompt, and Krippendorff's alpha of the points (interval scale). left_rate: how
    often the left answer won, ties aside; far from a half, raters went by position.
    """
    from scipy.stats import binomtest

    names = [one.rater for one in ratings]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"ratings: {twice} stands in two files; leave one out or rename the rater")
    points = np.stack([one.points for one in ratings])  # (raters, items)
    rated = ~np.isnan(points).all(0)
    if not rated.any():
        raise UserError("ratings: hold no choices yet")
    means = np.nanmean(points[:, rated], 0)
    low, high = wilson_interval(float(means.sum()), len(means))
    wins, losses = int((means > 0.5).sum()), int((means < 0.5).sum())
    left = np.concatenate([one.left for one in ratings])
    left = left[~np.isnan(left)]
    return {
        "a": sheet.names[0],
        "b": sheet.names[1],
        "prompts": len(means),
        "choices": {
            "b": int((points == 1).sum()),
            "tie": int((points == 0.5).sum()),
            "a": int((points == 0).sum()),
        },
        "win_rate": float(means.mean()),
        "win_rate_low": low,
        "win_rate_high": high,
        "p_value": float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0,
        "quality": _quality(ratings),
        "agreement": _agreement(points),
        "left_rate": float(left.mean()) if len(left) else None,
        "raters": {one.rater: int((~np.isnan(one.points)).sum()) for one in ratings},
    }


def _quality(ratings: Sequence[Ratings]) -> dict[str, Any] | None:
    """Mean marks over the prompts where both answers got one, and their paired difference."""
    a, b = (np.stack([getattr(one, f"quality_{m}") for one in ratings]) for m in ("a", "b"))
    both = ~np.isnan(a) & ~np.isnan(b)
    used = both.any(0)
    if not used.any():
        return None
    a, b = (np.nanmean(np.where(both, marks, np.nan)[:, used], 0) for marks in (a, b))
    low, high = interval_of_mean(b - a)
    return {
        "prompts": int(used.sum()),
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": float((b - a).mean()),
        "difference_low": low,
        "difference_high": high,
    }


def _agreement(points: np.ndarray) -> dict[str, Any] | None:
    """None where no prompt has two raters."""
    pairs = [
        column[i] == column[j]
        for column in (values[~np.isnan(values)] for values in points.T)
        for i in range(len(column))
        for j in range(i)
    ]
    if not pairs:
        return None
    return {
        "equal_choices": float(np.mean(pairs)),
        "pairs": len(pairs),
        "krippendorff_alpha": krippendorff_alpha(points),
    }


def krippendorff_alpha(values: np.ndarray) -> float | None:
    """Krippendorff's alpha for interval data (2011), 1: agreement, 0: chance.

    values: (raters, items), nan where a rater said nothing. None where all values are the same,
    of which nothing can be said.
    """
    units = [column[~np.isnan(column)] for column in values.T]
    units = [column for column in units if len(column) > 1]
    everything = np.concatenate(units)
    count = len(everything)

    def squares(some: np.ndarray) -> float:  # sum over ordered pairs of squared differences
        return 2 * (len(some) * float((some**2).sum()) - float(some.sum()) ** 2)

    expected = squares(everything) / (count * (count - 1))
    if expected <= 0:
        return None
    observed = sum(squares(column) / (len(column) - 1) for column in units) / count
    return 1 - observed / expected


def format_tally(found: dict[str, Any]) -> str:
    """The tally for a terminal."""
    choices = found["choices"]
    lines = [
        f"b = {found['b']} against a = {found['a']}, {found['prompts']} prompts",
        f"win rate of b {found['win_rate']:.3f} ({found['win_rate_low']:.3f} to "
        f"{found['win_rate_high']:.3f}), sign test p = {found['p_value']:.3g}; choices: "
        f"b {choices['b']}, tie {choices['tie']}, a {choices['a']}",
    ]
    if quality := found["quality"]:
        lines.append(
            f"quality: b {quality['b']:.2f}, a {quality['a']:.2f}; difference "
            f"{quality['difference']:+.2f} "
            f"{in_words(quality['difference_low'], quality['difference_high'], '+.2f')}"
        )
    if agreement := found["agreement"]:
        alpha = agreement["krippendorff_alpha"]
        shown = "not defined (all choices are alike)" if alpha is None else f"{alpha:.3f}"
        lines.append(
            f"agreement: {agreement['equal_choices']:.0%} of {agreement['pairs']} pairs of choices "
            f"are equal, Krippendorff's alpha {shown}"
        )
    if found["left_rate"] is not None:
        lines.append(f"the left answer was chosen in {found['left_rate']:.0%} of the choices")
    raters = ", ".join(f"{name} {count}" for name, count in found["raters"].items())
    return "\n".join([*lines, f"rated: {raters}"])
