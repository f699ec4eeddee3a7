"""A sweep as one self-contained HTML page: no JavaScript, nothing fetched, all text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from orpo_dist.runs.report import inline_svg
from orpo_dist.sweeps.found.advice import advise
from orpo_dist.sweeps.found.plots import (
    curves_figure,
    front_figure,
    parallel_figure,
    response_figure,
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
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #1f2937; overflow-wrap: anywhere }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin-top: 2rem }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; font-size: .85rem }}
td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }}
th {{ white-space: nowrap }} tr.best td {{ font-weight: 600; color: #2563eb }}
.take {{ border-left: .3rem solid #2563eb; padding: .1rem 1rem; margin: 1rem 0 }}
.failed {{ color: #b91c1c }} .stopped {{ color: #b45309 }} figcaption, .note {{ color: #6b7280 }}
figure {{ margin: 0 }} svg {{ max-width: 100%; height: auto }}
pre {{ background: #f3f4f6; padding: .8rem; overflow-x: auto; font-size: .85rem }}
</style>
<h1>{title}</h1><p>{subtitle}</p>
<div class="take">{advice}</div>
{figures}
<h2>Points</h2><div class="wide">{points}</div>
<h2>Trials</h2><div class="wide">{trials}</div>
<h2>The best, ready to train</h2>{best}
<h2>The sweep</h2><details><summary>{name}</summary><pre>{file}</pre></details>
</html>
"""


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
    return PAGE.format(
        title=html.escape(f"Sweep {results.project.name}"),
        subtitle=_subtitle(results),
        advice="".join(f"<p>{html.escape(sentence)}</p>" for sentence in advice),
        figures=_figures(results),
        points=_points(results),
        trials=_trials(results),
        best=_best(results),
        name=SWEEP,
        file=html.escape((results.project / SWEEP).read_text(encoding="utf-8")),
    )


def _subtitle(results: Results) -> str:
    sweep = results.sweep
    seconds = sum(trial.seconds for trial in results.trials)
    parts = [
        f"model {sweep.base.get('model')}",
        f"{len(results.trials)} trials of {sweep.workers_per_trial} worker(s)",
        f"ranked by {METRICS[results.metric].label} ({results.mode})",
        f"scheduler {sweep.scheduler_name}, searcher {sweep.searcher_name}",
        f"{seconds:.0f} s of training",
    ]
    return html.escape(" · ".join(parts))


def _figures(results: Results) -> str:
    names = varying(results)
    first = [name for name in ("orpo_alpha", "lr") if name in names]
    drawn = [(f"{n} against accuracy and perplexity", response_figure(results, n), INTERVALS)
             for n in dict.fromkeys([*first, *names])]  # fmt: skip
    drawn += [
        ("What can be had at once", front_figure(results), FRONT),
        ("Learning curves", curves_figure(results), CURVES),
        ("All settings together", parallel_figure(results), PARALLEL),
    ]
    return "".join(
        f"<h2>{html.escape(title)}</h2><figure>{inline_svg(figure)}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for title, figure, caption in drawn
        if figure is not None
    )


INTERVALS = (
    "Bars are 95 % intervals: over seeds where there are several, else what the number of held-out "
    "pairs allows. The dotted line is the best point."
)
FRONT = "No other point is better than those on the front in both."
CURVES = "On held-out data. A cross is where a trial was stopped or failed."
PARALLEL = "One line per trial; blue is the best, dotted ones were stopped, with their last value."


def _points(results: Results) -> str:
    metrics = list(dict.fromkeys([*results.sweep.metrics, "accuracy", "perplexity"]))
    names = results.names
    ranked = results.ranked
    rows = []
    for point in [*ranked, *(p for p in results.points if not any(p is r for r in ranked))]:
        cells = [shown(point.settings.get(name, "")) for name in names]
        cells += [_spoken(point.estimate(metric)) for metric in metrics]
        cells.append(f"{len(point.finished)} of {len(point.trials)}")
        rows.append((cells, "best" if point is results.best else ""))
    return _table([*names, *(METRICS[m].label for m in metrics), "finished"], rows)


def _spoken(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    text = f"{estimate.mean:.4g}"
    if estimate.kind != "none":
        text += f" ({estimate.low:.4g} to {estimate.high:.4g})"
    return text


def _trials(results: Results) -> str:
    rows = []
    for trial in results.trials:
        value = trial.metrics.get(results.metric)
        rows.append((
            [
                trial.name, str(trial.step), "" if value is None else f"{value:.4g}",
                f"{trial.seconds:.0f}", str(trial.failures or ""), trial.status, trial.why,
            ],
            trial.status,
        ))  # fmt: skip
    label = METRICS[results.metric].label
    return _table(["trial", "step", label, "seconds", "restarts", "status", "why"], rows)


def _table(head: list[str], rows: Iterable[tuple[list[str], str]]) -> str:
    def line(cells: list[str], kind: str, style: str = "") -> str:
        inside = "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells)
        return f'<tr class="{html.escape(style)}">{inside}</tr>'

    return f"<table>{line(head, 'th')}{''.join(line(c, 'td', s) for c, s in rows)}</table>"


def _best(results: Results) -> str:
    if results.best_trial is None:
        return "<p>No trial has finished.</p>"
    text = html.escape(best_yaml(results))
    return f"<details><summary>{BEST}, beside this page</summary><pre>{text}</pre></details>"
