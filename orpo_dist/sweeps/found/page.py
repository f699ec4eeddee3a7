"""A sweep as one self-contained HTML page: no JavaScript, nothing fetched, all text escaped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from orpo_dist.base.pages.figures import inline_svg
from orpo_dist.base.pages.render import render
from orpo_dist.sweeps.found.advice import advise
from orpo_dist.sweeps.found.plots import (
    curves_figure,
    front_figure,
    parallel_figure,
    response_figures,
)
from orpo_dist.sweeps.found.results import (
    Estimate,
    Results,
    best_yaml,
    read_results,
    varying,
    write_results,
)
from orpo_dist.sweeps.protocol import BEST, SWEEP
from orpo_dist.sweeps.searched.metrics import METRICS
from orpo_dist.sweeps.searched.space import shown

REPORT = "report.html"
INTERVALS = (
    "Bars are 95 % intervals: of the seeds and the held-out pairs together where there are several "
    "seeds, else of what the number of pairs allows. The dotted line is the best point."
)
FRONT = "No other point is better than those on the front in both."
CURVES = "On held-out data. A cross is where a trial was stopped or failed."
PARALLEL = "One line per trial; blue is the best, dotted ones were stopped, with their last value."


def write_page(project: Path) -> Path:
    """Write ``report.html``, ``sweep.json``, ``sweep.csv`` and ``best.yaml`` into a sweep's folder.

    Raises ``UserError`` if it holds no sweep.
    """
    results = read_results(project)
    advice = advise(results)
    write_results(results, advice)
    page = project / REPORT
    page.write_text(sweep_page(results, advice), encoding="utf-8")
    return page


def sweep_page(results: Results, advice: list[str]) -> str:
    """The page as HTML text."""
    return render(
        "sweeps/found/page.html",
        title=f"Sweep {results.project.name}",
        style="sweeps/found/page.css",
        subtitle=_subtitle(results),
        advice=advice,
        drawings=list(_drawings(results)),
        points=_points(results),
        intervals=_intervals(results),
        trials=_trials(results),
        best=best_yaml(results) if results.best_trial is not None else "",
        best_name=BEST,
        file_name=SWEEP,
        file=(results.project / SWEEP).read_text(encoding="utf-8"),
    )


def _subtitle(results: Results) -> list[str]:
    sweep = results.sweep
    seconds = sum(trial.seconds for trial in results.trials)
    return [
        f"model {sweep.base.get('model')}",
        f"{len(results.trials)} trials of {sweep.workers_per_trial} worker(s)",
        f"ranked by {METRICS[results.metric].label} ({results.mode})",
        f"scheduler {sweep.scheduler_name}, searcher {sweep.searcher_name}",
        f"{seconds:.0f} s of training",
    ]


def _drawings(results: Results) -> Iterator[tuple[str, list[Markup], str]]:
    """Headings, the figures below them as SVG, and captions."""
    names = varying(results)
    first = [name for name in ("orpo_alpha", "lr") if name in names]
    drawn = [(f"{n} against accuracy and perplexity", response_figures(results, n), INTERVALS)
             for n in dict.fromkeys([*first, *names])]  # fmt: skip
    drawn += [
        ("What can be had at once", [front_figure(results)], FRONT),
        ("Learning curves", [curves_figure(results)], CURVES),
        ("All settings together", [parallel_figure(results)], PARALLEL),
    ]
    for heading, figures, caption in drawn:
        known = [inline_svg(figure, heading) for figure in figures if figure is not None]
        if known:
            yield heading, known, caption


def _points(results: Results) -> dict[str, Any]:
    metrics = list(dict.fromkeys([*results.sweep.metrics, "accuracy", "perplexity"]))
    names = results.names
    ranked = results.ranked
    rows, marks = [], []
    for point in [*ranked, *(p for p in results.points if not any(p is r for r in ranked))]:
        cells = [shown(point.settings.get(name, "")) for name in names]
        cells += [_spoken(point.estimate(metric)) for metric in metrics]
        rows.append([*cells, f"{len(point.finished)} of {len(point.trials)}"])
        marks.append("best" if point is results.best else "")
    head = [*names, *(METRICS[m].label for m in metrics), "finished"]
    texts = [name for name in names if not results.numbers(name)]
    return {"head": head, "rows": rows, "marks": marks, "texts": texts}


def _spoken(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    text = f"{estimate.mean:.4g}"
    if estimate.kind != "none":
        text += f" ({estimate.low:.4g} to {estimate.high:.4g})"
    return text


def _intervals(results: Results) -> str:
    """What the brackets in the table are, where there are any."""
    seeds = {len(point.finished) for point in results.ranked}
    if max(seeds, default=1) > 1:
        few = " Two seeds are too few for more than a first look." if 2 in seeds else ""
        return f"In brackets: 95 % intervals over seeds and held-out pairs.{few}"
    if any(point.pairs for point in results.ranked):
        return "In brackets: what the number of held-out pairs allows; other seeds may differ more."
    return ""


def _trials(results: Results) -> dict[str, Any]:
    rows = []
    for trial in results.trials:
        value = trial.metrics.get(results.metric)
        rows.append((
            trial.name, str(trial.step), "" if value is None else f"{value:.4g}",
            f"{trial.seconds:.0f}", str(trial.failures or ""), trial.status, trial.why,
        ))  # fmt: skip
    label = METRICS[results.metric].label
    head = ["trial", "step", label, "seconds", "restarts", "status", "why"]
    return {"head": head, "rows": rows, "marks": [trial.status for trial in results.trials]}
