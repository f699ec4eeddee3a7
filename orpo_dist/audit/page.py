"""The audit as one self-contained HTML page: no JavaScript, nothing fetched, all text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from orpo_dist.audit.audit import Audit
from orpo_dist.audit.terminal import bias_sentence, setting_name
from orpo_dist.runs.report import COLOURS, inline_svg

NAMED = 10  # rows named per finding
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Data audit</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #1f2937; overflow-wrap: anywhere }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin-top: 2rem }}
table {{ border-collapse: collapse }} td + td, th + th {{ text-align: right }}
td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }}
section {{ border-left: .3rem solid #9ca3af; padding: .1rem 1rem; margin: 1rem 0 }}
section.error {{ border-color: #b91c1c }} section.warning {{ border-color: #d97706 }}
section p {{ margin: .3rem 0 }} small {{ color: #6b7280 }} svg {{ max-width: 100%; height: auto }}
</style>
<h1>Data audit</h1><p>{subtitle}</p>
<h2>What to do, worst first</h2>{findings}
<h2>Lengths in {unit}</h2>{histogram}{lengths}<p>{bias}</p>
{truncation}
<h2>Scripts</h2><p>By Unicode ranges of letters: a script is not a language.</p>{scripts}
{categories}
</html>
"""


def audit_page(found: Audit) -> str:
    """The page as HTML text."""
    figures = found.figures
    said = [
        f"{figures['pairs']} pairs in {figures['rows']} rows of {', '.join(figures['files'])}",
        *(f"Not checked: {text}" for text in figures["left_out"]),
    ]
    return PAGE.format(
        subtitle="<br>".join(html.escape(text) for text in said),
        findings="".join(_finding(found, n) for n in range(len(found.findings)))
        or "<p>No rule fired.</p>",
        unit=figures["unit"],
        histogram=inline_svg(_histogram(figures)),
        lengths=_table(
            ("", "median", "95 % up to", "longest", "total"),
            ((part, *row.values()) for part, row in figures["lengths"].items()),
        ),
        bias=html.escape(bias_sentence(figures["length_bias"])),
        truncation=_truncation(figures.get("truncation", [])),
        scripts=_table(
            ("script", "prompts", "chosen answers"),
            ((name, *row.values()) for name, row in figures["scripts"].items()),
        ),
        categories=_categories(figures["categories"]),
    )


def _finding(found: Audit, number: int) -> str:
    finding = found.findings[number]
    named = "<br>".join(
        html.escape(f"{found.corpus.origins[row]}: {detail}")
        for row, detail in list(finding.rows.items())[:NAMED]
    )
    return (
        f'<section class="{finding.severity}"><p><b>{finding.severity}</b>: '
        f"{html.escape(finding.sentence)} <small>({finding.rule})</small></p>"
        f"<p>{html.escape(finding.advice)}</p><small>{named}</small></section>"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    def line(cells: Iterable[Any], kind: str) -> str:
        shown = "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in cells)
        return f"<tr>{shown}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _truncation(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    table = _table(
        ("setting", "pairs cut", "tokens lost", "pairs left without a difference"),
        (
            (
                setting_name(row),
                f"{row['share_cut']:.1%}",
                f"{row['share_lost']:.1%}",
                row["pairs_without_difference"],
            )
            for row in rows
        ),
    )
    plot = inline_svg(_costs(rows)) if len(rows) > 1 else ""
    return f"<h2>What each length limit would cost</h2>{plot}{table}"


def _categories(categories: dict[str, dict[str, Any]]) -> str:
    if not categories:
        return ""
    rows = (
        (
            name,
            part["pairs"],
            *(row["median"] for row in part["lengths"].values()),
            "{accuracy:.0%} ({low:.0%} to {high:.0%})".format(**part["length_bias"]),
            ", ".join(f"{rule} {n}" for rule, n in part["flagged"].items()),
        )
        for name, part in categories.items()
    )
    head = ("category", "pairs", "prompt", "chosen", "rejected", "longer wins", "flagged")
    return f"<h2>Categories (median lengths)</h2>{_table(head, rows)}"


def _histogram(figures: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    counts = figures["histograms"]
    for colour, part in zip(COLOURS, ("prompt", "chosen", "rejected"), strict=True):
        axis.stairs(counts[part], counts["edges"], color=colour, lw=1.5, label=part)
    axis.set(xscale="log", xlabel=f"{figures['unit']} (log scale)", ylabel="pairs")
    axis.legend(frameon=False)
    return figure


def _costs(rows: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    names = dict.fromkeys(row["setting"] for row in rows if row["value"] is not None)
    for colour, name in zip(COLOURS, names, strict=False):
        mine = [row for row in rows if row["setting"] == name]
        limits = [row["value"] for row in mine]
        cut = [100 * row["share_cut"] for row in mine]
        lost = [100 * row["share_lost"] for row in mine]
        axis.plot(limits, cut, "o-", color=colour, label=f"{name}: pairs cut")
        axis.plot(limits, lost, "o--", color=colour, alpha=0.6, label=f"{name}: tokens lost")
    axis.set(xscale="log", xlabel="limit in tokens (log scale)", ylabel="per cent", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
