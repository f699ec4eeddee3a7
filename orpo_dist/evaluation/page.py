"""Evaluations as one self-contained HTML page with plots."""

from __future__ import annotations

import html
from typing import Any

from orpo_dist.base.pages import page, table
from orpo_dist.evaluation.terminal import (
    comparison_sentence,
    format_tasks,
    short,
    text_sentence,
)
from orpo_dist.runs.report import inline_svg

COLOURS = ("#2563eb", "#d97706", "#059669", "#b91c1c", "#7c3aed", "#0891b2", "#be185d", "#4b5563")


def evaluation_page(found: dict[str, Any]) -> str:
    """The page as HTML text. found: what ``evaluate_models`` returns."""
    results = {short(name, found["models"]): r for name, r in found["models"].items()}
    body = ""
    if all("pairs" in result for result in results.values()):
        body += _pairs(results)
    sentences = [comparison_sentence(entry, found["models"]) for entry in found["comparisons"]]
    sentences += [
        f"{name}: {text_sentence(text)}"
        for name, result in results.items()
        for text in result.get("texts", [])
    ]
    sentences += format_tasks(found).splitlines()
    body += "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
    return page("Evaluation", body)


def _pairs(results: dict[str, dict[str, Any]]) -> str:
    rows = [_row(name, result) for name, result in results.items()]
    head = ("model", "pairs", "accuracy", "95 % interval", "perplexity", "margin", "log-odds")
    parts = [
        table(head, rows),
        "<h2>How far apart the answers are</h2>",
        inline_svg(_spread(results)),
        "<h2>Right where it is sure?</h2><p>Confidence is σ(|log-odds|); on the dotted line a "
        "model is right as often as it is sure.</p>",
        inline_svg(_calibration(results)),
        "<h2>Does it go by length?</h2>",
        _length_table(results),
        "<h2>Categories</h2>",
        _categories(results),
    ]
    return "".join(parts)


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


def _length_table(results: dict[str, dict[str, Any]]) -> str:
    def share(part: dict[str, Any]) -> str:
        if not part["pairs"]:
            return "–"
        return f"{part['preference_accuracy']:.3f} of {part['pairs']}"

    rows = []
    for name, result in results.items():
        bias = result["length_bias"]
        gap = "–"
        if bias["gap"] is not None:
            gap = f"{bias['gap']:+.3f} ({bias['gap_low']:+.3f} to {bias['gap_high']:+.3f})"
        parts = (bias[part] for part in ("longer_chosen", "longer_rejected", "equal"))
        rows.append((name, *map(share, parts), gap))
    head = ("accuracy where", "chosen is longer", "rejected is longer", "equal", "gap")
    return table(head, rows)


def _categories(results: dict[str, dict[str, Any]]) -> str:
    names = list(dict.fromkeys(c for result in results.values() for c in result["categories"]))
    if not names:
        return "<p>The data name none.</p>"
    rows = []
    for category in names:
        for name, result in results.items():
            if category in result["categories"]:
                row = _row(name, result["categories"][category])
                rows.append((category, *row))
    head = ("category", "model", "pairs", "accuracy", "95 % interval", "perplexity", "margin")
    return table((*head, "log-odds"), rows)


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    return figure, figure.subplots(1, panels)


def _spread(results: dict[str, dict[str, Any]]) -> Any:
    figure, axes = _figure(2)
    for axis, key, label in zip(
        axes, ("margin", "log_odds"), ("margin, nats per token", "log-odds"), strict=True
    ):
        for number, (name, result) in enumerate(results.items()):
            histogram = result[key]["histogram"]
            colour = COLOURS[number % len(COLOURS)]
            axis.stairs(histogram["counts"], histogram["edges"], color=colour, lw=1.4,
                        label=_label(name))  # fmt: skip
        axis.axvline(0, color="#9ca3af", lw=1, ls=":")
        axis.set(xlabel=label, ylabel="pairs")
    axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _calibration(results: dict[str, dict[str, Any]]) -> Any:
    figure, axis = _figure(1)
    axis.plot([0.5, 1], [0.5, 1], color="#9ca3af", ls=":")
    for number, (name, result) in enumerate(results.items()):
        bins = [part for part in result["calibration"]["bins"] if part["pairs"]]
        sure = [part["confidence"] for part in bins]
        right = [part["preference_accuracy"] for part in bins]
        reach = [
            [max(0.0, r - part["accuracy_low"]) for r, part in zip(right, bins, strict=True)],
            [max(0.0, part["accuracy_high"] - r) for r, part in zip(right, bins, strict=True)],
        ]
        axis.errorbar(sure, right, yerr=reach, fmt="o-", ms=4, lw=1.2, capsize=2,
                      color=COLOURS[number % len(COLOURS)], label=_label(name))  # fmt: skip
    axis.set(xlabel="confidence", ylabel="accuracy", ylim=(0, 1.02))
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _label(name: str) -> str:
    """Text that matplotlib shows: what begins with an underscore it leaves out of legends."""
    return " " + name
