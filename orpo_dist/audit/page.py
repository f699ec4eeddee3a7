"""The audit as one self-contained HTML page: no JavaScript, nothing fetched, all text escaped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from orpo_dist.audit.audit import Audit
from orpo_dist.audit.rules import Finding
from orpo_dist.audit.terminal import bias_sentence, setting_name
from orpo_dist.base.pages.figures import COLOURS, inline_svg, legend, panel
from orpo_dist.base.pages.render import render

NAMED = 10  # rows named per finding


def audit_page(found: Audit) -> str:
    """The page as HTML text."""
    figures = found.figures
    truncation = figures.get("truncation", [])
    return render(
        "audit/page.html",
        title="Data audit",
        style="audit/page.css",
        said=[
            f"{figures['pairs']} pairs in {figures['rows']} rows of {', '.join(figures['files'])}",
            *(f"Not checked: {text}" for text in figures["left_out"]),
        ],
        findings=[(finding, list(_named(found, finding))) for finding in found.findings],
        unit=figures["unit"],
        histogram=inline_svg(
            _histogram(figures), f"How many pairs have how many {figures['unit']}"
        ),
        lengths=[(part, *row.values()) for part, row in figures["lengths"].items()],
        bias=bias_sentence(figures["length_bias"]),
        truncation=[_cost_row(row) for row in truncation],
        costs=_costs(truncation) if len(truncation) > 1 else [],
        scripts=[(name, *row.values()) for name, row in figures["scripts"].items()],
        categories=[_category_row(*item) for item in figures["categories"].items()],
    )


def _named(found: Audit, finding: Finding) -> Iterator[str]:
    for row, detail in list(finding.rows.items())[:NAMED]:
        yield f"{found.corpus.origins[row]}: {detail}"


def _cost_row(row: dict[str, Any]) -> tuple[Any, ...]:
    shares = (f"{row['share_cut']:.1%}", f"{row['share_lost']:.1%}")
    return setting_name(row), *shares, row["pairs_without_difference"]


def _category_row(name: str, part: dict[str, Any]) -> tuple[Any, ...]:
    return (
        name,
        part["pairs"],
        *(row["median"] for row in part["lengths"].values()),
        "{accuracy:.0%} ({low:.0%} to {high:.0%})".format(**part["length_bias"]),
        ", ".join(f"{rule} {n}" for rule, n in part["flagged"].items()),
    )


def _histogram(figures: dict[str, Any]) -> Any:
    figure, axis = panel()
    counts = figures["histograms"]
    for colour, part in zip(COLOURS, ("prompt", "chosen", "rejected"), strict=False):
        axis.stairs(counts[part], counts["edges"], color=colour, lw=1.5, label=part)
    axis.set(xscale="log", xlabel=f"{figures['unit']} (log scale)", ylabel="pairs")
    legend(figure, columns=3)
    return figure


def _costs(rows: list[dict[str, Any]]) -> list[Markup]:
    """Pairs cut and tokens lost over the limit, a panel for each."""
    names = dict.fromkeys(row["setting"] for row in rows if row["value"] is not None)
    drawn = []
    for share, label in (("share_cut", "pairs cut"), ("share_lost", "tokens lost")):
        figure, axis = panel()
        for colour, name in zip(COLOURS, names, strict=False):
            mine = [row for row in rows if row["setting"] == name]
            limits = [row["value"] for row in mine]
            axis.plot(limits, [100 * row[share] for row in mine], "o-", color=colour, label=name)
        axis.set(xscale="log", xlabel="limit in tokens (log scale)", ylabel=f"{label}, per cent",
                 ylim=(0, None))  # fmt: skip
        legend(figure, columns=1)
        drawn.append(inline_svg(figure, f"{label} for each limit"))
    return drawn
