"""Evaluations as one self-contained HTML page with plots."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from orpo_dist.base.pages.figures import COLOURS, FAINT, curve_label, inline_svg, legend, panel
from orpo_dist.base.pages.render import render
from orpo_dist.evaluation.terminal import (
    comparison_sentence,
    format_tasks,
    short,
    text_sentence,
)

COLUMNS = ("pairs", "accuracy", "95 % interval", "perplexity", "margin", "log-odds")


def evaluation_page(found: dict[str, Any]) -> str:
    """The page as HTML text. found: what ``evaluate_models`` returns."""
    results = {short(name, found["models"]): r for name, r in found["models"].items()}
    sentences = [comparison_sentence(entry, found["models"]) for entry in found["comparisons"]]
    sentences += [
        f"{name}: {text_sentence(text)}"
        for name, result in results.items()
        for text in result.get("texts", [])
    ]
    return render(
        "evaluation/page.html",
        title="Evaluation",
        columns=COLUMNS,
        pairs=_pairs(results) if all("pairs" in r for r in results.values()) else None,
        sentences=[*sentences, *format_tasks(found).splitlines()],
    )


def _pairs(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "rows": [_row(name, result) for name, result in results.items()],
        "spread": _spread(results),
        "calibration": inline_svg(_calibration(results), "Accuracy over confidence"),
        "lengths": [_length_row(name, r["length_bias"]) for name, r in results.items()],
        "categories": _categories(results),
    }


def _row(name: str, part: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        str(part["pairs"]),
        f"{part['preference_accuracy']:.3f}",
        f"{part['accuracy_low']:.3f} to {part['accuracy_high']:.3f}",
        "–" if part["perplexity"] is None else f"{part['perplexity']:.2f}",
        f"{part['mean_margin']:+.3f}",
        f"{part['mean_log_odds']:+.3f}",
    )


def _length_row(name: str, bias: dict[str, Any]) -> tuple[str, ...]:
    def share(part: dict[str, Any]) -> str:
        if not part["pairs"]:
            return "–"
        return f"{part['preference_accuracy']:.3f} of {part['pairs']}"

    gap = "–"
    if bias["gap"] is not None:
        gap = f"{bias['gap']:+.3f} ({bias['gap_low']:+.3f} to {bias['gap_high']:+.3f})"
    parts = (bias[part] for part in ("longer_chosen", "longer_rejected", "equal"))
    return name, *map(share, parts), gap


def _categories(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(c for result in results.values() for c in result["categories"])
    return [
        (category, *_row(name, result["categories"][category]))
        for category in names
        for name, result in results.items()
        if category in result["categories"]
    ]


def _spread(results: dict[str, dict[str, Any]]) -> list[Markup]:
    drawn = []
    for key, label in (("margin", "margin, nats per token"), ("log_odds", "log-odds")):
        figure, axis = panel()
        for number, (name, result) in enumerate(results.items()):
            histogram = result[key]["histogram"]
            axis.stairs(histogram["counts"], histogram["edges"], lw=1.4, label=curve_label(name),
                        color=COLOURS[number % len(COLOURS)])  # fmt: skip
        axis.axvline(0, color=FAINT, lw=1, ls=":")
        axis.set(xlabel=label, ylabel="pairs")
        legend(figure)
        drawn.append(inline_svg(figure, f"How many pairs have which {label}"))
    return drawn


def _calibration(results: dict[str, dict[str, Any]]) -> Any:
    figure, axis = panel()
    axis.plot([0.5, 1], [0.5, 1], color=FAINT, ls=":")
    for number, (name, result) in enumerate(results.items()):
        bins = [part for part in result["calibration"]["bins"] if part["pairs"]]
        sure = [part["confidence"] for part in bins]
        right = [part["preference_accuracy"] for part in bins]
        reach = [
            [max(0.0, r - part["accuracy_low"]) for r, part in zip(right, bins, strict=True)],
            [max(0.0, part["accuracy_high"] - r) for r, part in zip(right, bins, strict=True)],
        ]
        axis.errorbar(sure, right, yerr=reach, fmt="o-", ms=4, lw=1.2, capsize=2,
                      color=COLOURS[number % len(COLOURS)], label=curve_label(name))  # fmt: skip
    axis.set(xlabel="confidence", ylabel="accuracy", ylim=(0, 1.02))
    legend(figure)
    return figure
