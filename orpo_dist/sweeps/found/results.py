"""What a sweep has found, read from its folder: points, means over seeds, intervals, the best."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orpo_dist.base.intervals import mean_interval, mean_share_interval
from orpo_dist.config import dump_config, load_config
from orpo_dist.runs.folder import RunFolder, read_json, read_metrics
from orpo_dist.sweeps.protocol import (
    BEST,
    Trial,
    folder_of,
    holds_sweep,
    read_sweep,
    read_trials,
    rounds_of,
    write_best,
    write_summary,
    write_table,
)
from orpo_dist.sweeps.searched.config import PAUSING, SweepConfig
from orpo_dist.sweeps.searched.metrics import METRICS, evaluation_metrics
from orpo_dist.sweeps.searched.space import ENGINE, is_number, shown


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval. kind: what it rests on: seeds, pairs alone, none."""

    mean: float
    low: float
    high: float
    kind: str


@dataclass
class Point:
    """The trials of one setting; they differ in their seed only. project: the folder they are in.

    pairs: of the evaluation data, where that is known.
    """

    settings: dict[str, Any]
    trials: list[Trial]
    project: Path
    pairs: int = 0

    @cached_property
    def finished(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status == "finished"]

    def estimate(self, metric: str) -> Estimate | None:
        """Over the trials that have finished; None where none has."""
        values = [t.metrics[metric] for t in self.finished if metric in t.metrics]
        if not values:
            return None
        mean = sum(values) / len(values)
        if metric == "accuracy" and self.pairs:
            kind = "seeds" if len(values) > 1 else "pairs"
            return Estimate(mean, *mean_share_interval(values, self.pairs), kind)
        if len(values) > 1 and min(values) < max(values):
            return Estimate(mean, *mean_interval(values, *METRICS[metric].ends), "seeds")
        return Estimate(mean, mean, mean, "none")

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {shown(value)}" for name, value in self.settings.items())


@dataclass
class Results:
    """A sweep and all its rounds, as far as they have come."""

    project: Path
    sweep: SweepConfig
    points: list[Point]
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    not_started: int = 0

    @property
    def metric(self) -> str:
        return next(iter(self.sweep.metrics))

    @property
    def mode(self) -> str:
        return self.sweep.metrics[self.metric]

    @property
    def trials(self) -> list[Trial]:
        return [trial for point in self.points for trial in point.trials]

    @property
    def names(self) -> list[str]:
        """The settings that were searched, seeds left out."""
        return list(dict.fromkeys(name for point in self.points for name in point.settings))

    def numbers(self, name: str) -> list[float]:
        """All numbers that were tried of a setting, from the smallest on."""
        tried = (p.settings[name] for p in self.points if name in p.settings)
        return sorted({value for value in tried if is_number(value)})

    @cached_property
    def ranked(self) -> list[Point]:
        """Points with a finished trial, best mean first."""
        sign = -1.0 if self.mode == "max" else 1.0
        means = [(p.estimate(self.metric), p) for p in self.points]
        known = [(e.mean, p) for e, p in means if e is not None and math.isfinite(e.mean)]
        return [p for _, p in sorted(known, key=lambda pair: sign * pair[0])]

    @property
    def best(self) -> Point | None:
        return self.ranked[0] if self.ranked else None

    @property
    def best_trial(self) -> Trial | None:
        """The best trial of the best point."""
        if self.best is None:
            return None
        known = [t for t in self.best.finished if self.metric in t.metrics]
        return (max if self.mode == "max" else min)(known, key=lambda t: t.metrics[self.metric])

    def front(self) -> list[Point]:
        """Points that no other beats in accuracy and perplexity at once, by falling accuracy."""
        known = []
        for point in self.points:
            pair = point.estimate("accuracy"), point.estimate("perplexity")
            if pair[0] is not None and pair[1] is not None:
                known.append((pair[0].mean, pair[1].mean, point))
        found, lowest = [], math.inf
        for _, perplexity, point in sorted(known, key=lambda entry: (-entry[0], entry[1])):
            if perplexity < lowest:
                found.append(point)
                lowest = perplexity
        return found


def read_results(project: Path) -> Results:
    """The results in a sweep's folder and in its rounds; ``UserError`` if it holds no sweep."""
    sweep = read_sweep(project)
    points: list[Point] = []
    curves: dict[str, list[dict[str, float]]] = {}
    not_started = 0
    for folder in rounds_of(project):
        trials = read_trials(folder)
        if holds_sweep(folder):
            not_started += read_sweep(folder).number_of_trials - len(trials)
        for trial in trials:
            settings = {name: value for name, value in trial.settings.items() if name != "seed"}
            if "seed" in sweep.search_space:
                settings["seed"] = trial.settings["seed"]
            same = [p for p in points if p.settings == settings and p.project == folder]
            if not same:
                same = [Point(settings, [], folder)]
                points += same
            same[0].trials.append(trial)
            run = RunFolder(folder_of(folder, trial.name))
            same[0].pairs = same[0].pairs or _pairs(run)
            curves[f"{folder.name}/{trial.name}"] = _curve(run)
    return Results(project, sweep, points, curves, max(0, not_started))


def _pairs(run: RunFolder) -> int:
    return int((read_json(run.data_report).get("valid") or {}).get("pairs", 0))


def _curve(run: RunFolder) -> list[dict[str, float]]:
    """The evaluations of a run: ``step`` and every metric."""
    entries = [entry for entry in read_metrics(run.metrics) if "eval/loss" in entry]
    return [{"step": entry["step"], **evaluation_metrics(entry)} for entry in entries]


def write_results(results: Results, advice: Iterable[str]) -> None:
    """sweep.json, sweep.csv and, where a trial has finished, best.yaml."""
    best = results.best_trial
    write_summary(
        results.project,
        metrics=results.sweep.metrics,
        advice=list(advice),
        best={"name": best.name, "settings": best.settings, **best.metrics} if best else None,
        points=[_point_entry(results, point) for point in results.points],
        front=[point.settings for point in results.front()],
        trials=results.trials,
    )
    write_table(results.project, results.trials)
    if best is not None:
        write_best(results.project, best_yaml(results))


def _point_entry(results: Results, point: Point) -> dict[str, Any]:
    estimates = {
        name: vars(estimate)
        for name in dict.fromkeys([*results.sweep.metrics, "accuracy", "perplexity"])
        if (estimate := point.estimate(name)) is not None
    }
    return {"settings": point.settings, "finished": len(point.finished), **estimates}


def best_yaml(results: Results) -> str:
    """The config of the best trial, ready for ``orpo-dist train --config``."""
    trial, point = results.best_trial, results.best
    assert trial is not None and point is not None
    config = load_config(RunFolder(folder_of(point.project, trial.name)).config)
    sweep = results.sweep
    engine = sweep.engine_of(trial.settings)
    launch = f"launch {engine} --num-processes {sweep.workers_per_trial} -- "
    lines = [
        f"# The best of {len(results.trials)} trials: {point.label}",
        f"#     orpo-dist {launch if engine != 'single' else ''}train --config {BEST}",
    ]
    if trial.changes and sweep.scheduler_name in PAUSING:
        changes = json.dumps(trial.changes)
        lines.append(
            f"# Its settings changed while it trained, which this file cannot do: {changes}"
        )
    return (
        "\n".join(lines)
        + "\n"
        + dump_config(
            config.replace(
                project_name=f"{results.project.name}-best", resume_from_checkpoint="never"
            )
        )
    )


def varying(results: Results) -> list[str]:
    """The searched settings that have several values, the engine last."""
    names = [
        n for n in results.names if len({shown(p.settings.get(n)) for p in results.points}) > 1
    ]
    return sorted(names, key=lambda name: name == ENGINE)
