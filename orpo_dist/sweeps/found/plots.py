"""The figures of a sweep's page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from orpo_dist.base.pages.figures import COLOURS, FAINT, INK, WIDTH, legend, logarithmic, panel
from orpo_dist.sweeps.found.results import Point, Results, varying
from orpo_dist.sweeps.searched.metrics import METRICS
from orpo_dist.sweeps.searched.space import Choice, is_number, shown

STEEP = 20.0  # numbers that span more than this factor are drawn on a logarithmic scale
COLUMN = 1.25  # inches between two axes of the parallel coordinates


def response_figures(results: Results, setting: str) -> list[Any]:
    """A setting against accuracy and perplexity, with intervals; none without numbers to draw."""
    points = [p for p in results.points if p.finished and is_number(p.settings.get(setting))]
    if len({p.settings[setting] for p in points}) < 2:
        return []
    alone = varying(results) == [setting]  # else neighbours differ in other settings too
    drawn = []
    for metric, colour in zip(("accuracy", "perplexity"), COLOURS, strict=False):
        figure, axis = panel()
        _errorbars(axis, points, setting, metric, "o-" if alone else "o", colour)
        if results.best is not None and setting in results.best.settings:
            axis.axvline(results.best.settings[setting], color=FAINT, lw=1, ls=":")
        axis.set(xlabel=setting, ylabel=METRICS[metric].label)
        if in_logarithms(results, setting):
            logarithmic(axis, [p.settings[setting] for p in points])
        drawn.append(figure)
    return drawn


def in_logarithms(results: Results, setting: str) -> bool:
    """Whether a setting's numbers belong on a logarithmic axis: it was drawn so, its grid grows by
    a factor rather than by a step, it is a rate, or its numbers span more than ``STEEP``."""
    values = results.numbers(setting)
    if len(values) < 2 or values[0] <= 0:
        return False
    if setting == "lr" or values[-1] / values[0] >= STEEP:
        return True
    domains = [p.domain for p in results.sweep.search_space if p.name == setting]
    if any(isinstance(domain, Choice) for domain in domains):
        return _unevenness(map(math.log, values)) < _unevenness(values)
    return any(getattr(domain, "log", False) for domain in domains)


def _unevenness(values: Iterable[float]) -> float:
    """The widest gap between neighbours by the narrowest; 1: all are as far apart."""
    known = list(values)
    gaps = [after - before for before, after in itertools.pairwise(known)]
    return round(max(gaps) / min(gaps), 6)


def _errorbars(
    axis: Any, points: list[Point], setting: str, metric: str, style: str, colour: str
) -> None:
    drawn = [(p.settings[setting], e) for p in points if (e := p.estimate(metric)) is not None]
    drawn.sort(key=lambda pair: pair[0])
    means = [e.mean for _, e in drawn]
    errors = [[e.mean - e.low for _, e in drawn], [e.high - e.mean for _, e in drawn]]
    values = [value for value, _ in drawn]
    axis.errorbar(values, means, errors, fmt=style, color=colour, ms=5, lw=1.2, capsize=3)


def front_figure(results: Results) -> Any:
    """Accuracy against perplexity, the Pareto front joined and named; None without two points."""
    drawn = []
    for point in results.points:
        x, y = point.estimate("perplexity"), point.estimate("accuracy")
        if x is not None and y is not None:
            drawn.append((x.mean, y.mean, point))
    if len(drawn) < 2:
        return None
    front = results.front()
    figure, axis = panel()
    axis.scatter(
        [x for x, *_ in drawn], [y for _, y, _ in drawn], color=FAINT, s=24, label="points"
    )
    best = [entry for entry in drawn if any(entry[2] is member for member in front)]
    best.sort(key=lambda entry: entry[0])
    axis.plot(
        [x for x, *_ in best], [y for _, y, _ in best], "o-", color=COLOURS[0], label="Pareto front"
    )
    for across, up, point in best[:: max(1, math.ceil(len(best) / 8))]:
        text = _short(point, results)
        axis.annotate(text, (across, up), (6, -10), textcoords="offset points", fontsize=8.5)
    axis.set(xlabel=f"{METRICS['perplexity'].label} (lower is better)",
             ylabel=f"{METRICS['accuracy'].label} (higher is better)")  # fmt: skip
    legend(figure)
    return figure


def _short(point: Point, results: Results) -> str:
    names = varying(results)
    values = [point.settings[name] for name in names if name in point.settings]
    return ", ".join(f"{v:.3g}" if isinstance(v, float) else shown(v) for v in values)


def curves_figure(results: Results) -> Any:
    """Every trial's evaluations of the ranking metric; stopped ones end in a cross."""
    drawn = [(key, [e for e in log if results.metric in e]) for key, log in results.curves.items()]
    drawn = [(key, log) for key, log in drawn if log]
    if not drawn:
        return None
    status = {trial.name: trial.status for trial in results.trials}
    best = results.best_trial
    figure, axis = panel()
    for key, log in drawn:
        name = key.partition("/")[2]
        over = status.get(name)
        colour = COLOURS[0] if best and name == best.name else FAINT
        axis.plot(
            [e["step"] for e in log], [e[results.metric] for e in log],
            color=colour, lw=2.2 if colour != FAINT else 1, zorder=3 if colour != FAINT else 2,
            marker="." if len(log) < 30 else None,
        )  # fmt: skip
        if over in ("stopped", "failed"):
            axis.plot(log[-1]["step"], log[-1][results.metric], "x", color=COLOURS[1], zorder=4)
    axis.set(xlabel="optimizer step", ylabel=METRICS[results.metric].label)
    axis.plot([], [], label="best", color=COLOURS[0], lw=2.2)
    axis.plot([], [], label="others", color=FAINT)
    axis.plot([], [], "x", label="stopped or failed", color=COLOURS[1])
    legend(figure, columns=3)
    return figure


def parallel_figure(results: Results) -> Any:
    """Parallel coordinates: an axis per searched setting and the metric, a line per trial."""
    names = varying(results)
    trials = [
        t for t in results.trials
        if math.isfinite(t.metrics.get(results.metric, math.nan))
        and all(name in t.settings for name in names)
    ]  # fmt: skip
    if not names or len(trials) < 2:
        return None
    columns = [[t.settings[name] for t in trials] for name in names]
    columns.append([t.metrics[results.metric] for t in trials])
    logs = [in_logarithms(results, name) for name in names]
    heights = [_heights(*column) for column in zip(columns, [*logs, False], strict=True)]
    figure, axis = panel(max(WIDTH, COLUMN * len(columns)))
    axis.grid(False)
    best = results.best_trial
    for index, trial in enumerate(trials):
        style: dict[str, Any] = {"color": FAINT, "lw": 1.1, "alpha": 0.7}
        if best is not None and trial is best:
            style = {"color": COLOURS[0], "lw": 2.4, "zorder": 3}
        elif trial.status != "finished":
            style = {"color": COLOURS[1], "lw": 1.0, "ls": ":", "alpha": 0.7}
        axis.plot(range(len(heights)), [h[index] for h in heights], **style)
    for x, (column, high) in enumerate(zip(columns, heights, strict=True)):
        axis.axvline(x, color=INK, lw=0.8)
        for value, height in _ticks(column, high):
            axis.annotate(value, (x, height), (4, -3), textcoords="offset points", fontsize=8.5)
    axis.set_xticks(range(len(heights)), [*names, METRICS[results.metric].label])
    axis.set_yticks([])
    axis.set_xlim(-0.1, len(heights) - 0.7)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)
    return figure


def _heights(column: list[Any], log: bool) -> list[float]:
    """Where values stand between 0 and 1: numbers by size, all others by their order."""
    if not all(map(is_number, column)):
        order = {value: i for i, value in enumerate(sorted({shown(v) for v in column}))}
        return [order[shown(v)] / max(1, len(order) - 1) for v in column]
    values = [math.log(v) for v in column] if log else column
    low, high = min(values), max(values)
    return [(v - low) / (high - low) if high > low else 0.5 for v in values]


def _ticks(column: list[Any], heights: Sequence[float]) -> list[tuple[str, float]]:
    """Labels along an axis: all values where there are few, else the ends."""
    pairs = dict(zip((shown(v) for v in column), heights, strict=True))
    if len(pairs) <= 7:
        return [(f"{float(k):.4g}" if _is_text_number(k) else k, h) for k, h in pairs.items()]
    ends = sorted(pairs.items(), key=lambda pair: pair[1])
    return [(f"{float(k):.4g}" if _is_text_number(k) else k, h) for k, h in (ends[0], ends[-1])]


def _is_text_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
