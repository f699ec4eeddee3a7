"""What is known of a trial: one small file in its run folder, kept by the driver of the sweep."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from orpo_dist.runs.folder import RunFolder, read_json, write_json
from orpo_dist.runs.lineage import ASIDE, SAVING
from orpo_dist.sweeps.searched.metrics import METRICS

RECORD = "trial.json"
FAILURE = "failure.json"  # in a trial's folder: why its last attempt failed
GROUP = "placement.json"  # in a trial's folder: Ray's name for what its workers hold
PLACE = "place.json"  # in Ray's checkpoints: where the real one lies
# finished: trained to its end. stopped: by the scheduler or the time budget.
# interrupted: not over when the sweep ended; --resume goes on with it.
STATUSES = ("waiting", "running", "finished", "stopped", "failed", "interrupted")

OUT_OF_TIME = "time budget"  # begins the reason of trials that it has interrupted


def out_of_time(seconds: float) -> str:
    return f"{OUT_OF_TIME} of {seconds:g} s"


@dataclass
class Trial:
    """settings: what the space gave it, its seed included. why: of its end. metrics: the last ones.

    failures: how often a worker or machine was lost. seconds: since its last start.
    changes: new settings that a population gave it, as ``{"step": …, settings}``.
    """

    name: str
    settings: dict[str, Any]
    status: str = "waiting"
    why: str = ""
    step: int = 0
    percent: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failures: int = 0
    changes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.status in ("finished", "stopped", "failed")

    def take(self, report: dict[str, Any]) -> None:
        """Note what the trial has reported."""
        self.step = int(report.get("step", self.step))
        self.percent = float(report.get("percent", self.percent))
        self.seconds = float(report.get("seconds", self.seconds))
        self.metrics = {name: report[name] for name in METRICS if name in report} or self.metrics

    def save(self, project: Path) -> None:
        folder = folder_of(project, self.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, asdict(self))


def folder_of(project: Path, name: str) -> Path:
    """The run folder of a trial."""
    return project / "trials" / name


def rank(trials: Iterable[Trial], metric: str, mode: str) -> list[Trial]:
    """Best first; those without the metric last."""
    sign = -1.0 if mode == "max" else 1.0

    def key(trial: Trial) -> tuple[bool, float]:
        value = trial.metrics.get(metric, math.nan)
        return (True, 0.0) if math.isnan(value) else (False, sign * value)

    return sorted(trials, key=key)


def rank_by_point(trials: Iterable[Trial], metric: str, mode: str) -> list[Trial]:
    """The trials of the best point first, as results rank points, the best of them first."""
    ranked = rank(trials, metric, mode)
    seeds: dict[str, list[float]] = {}
    for trial in ranked:
        seeds.setdefault(_point(trial), []).append(trial.metrics.get(metric, math.nan))
    sign = -1.0 if mode == "max" else 1.0

    def mean(trial: Trial) -> tuple[bool, float]:
        values = [v for v in seeds[_point(trial)] if not math.isnan(v)]
        return (False, sign * sum(values) / len(values)) if values else (True, 0.0)

    return sorted(ranked, key=mean)


def _point(trial: Trial) -> str:
    settings = {name: value for name, value in trial.settings.items() if name != "seed"}
    return json.dumps(settings, sort_keys=True, default=str)


def drop_weights(folder: Path, checkpoints_only: bool) -> None:
    """Delete the checkpoints of a run, and its model too; what it has logged stays."""
    for name in ("checkpoint-*", ASIDE, SAVING):
        for checkpoint in folder.glob(name):
            shutil.rmtree(checkpoint, ignore_errors=True)
    for weights in [] if checkpoints_only else folder.glob("*.safetensors"):
        weights.unlink()


def read_trial(path: Path) -> Trial | None:
    """The trial in a record; None if it is missing or broken."""
    content = read_json(path)
    known = {field.name for field in fields(Trial)}
    try:
        return Trial(**{name: value for name, value in content.items() if name in known})
    except TypeError:
        return None


def read_trials(project: Path) -> list[Trial]:
    """All trials that a sweep's folder holds a record of, by name."""
    found = (read_trial(path) for path in sorted(project.glob(f"trials/*/{RECORD}")))
    return [trial for trial in found if trial is not None]


def crashed_trials(project: Path) -> list[Trial]:
    """Failed trials of a sweep and its stages whose settings were not what they failed by."""
    stages = [project, *sorted(project.glob("stage-*"))]
    return [
        trial
        for stage in stages
        for trial in read_trials(stage)
        if trial.status == "failed"
        and not read_json(folder_of(stage, trial.name) / FAILURE).get("final")
    ]


def forget_failures(folder: Path) -> None:
    """Let failed trials start again from their newest checkpoints."""
    for trial in read_trials(folder):
        if trial.status == "failed":
            (folder_of(folder, trial.name) / FAILURE).unlink(missing_ok=True)
            trial.status, trial.why = "waiting", ""
            trial.save(folder)


def settle_records(project: Path, time_budget: float | None = None) -> list[Trial]:
    """The trials of a sweep that is not running: what was not over is interrupted.

    time_budget: seconds, where nothing else can have ended it.
    """
    trials = read_trials(project)
    for trial in trials:
        if not trial.over and trial.status != "interrupted":
            trial.status = "interrupted"
            if time_budget is not None:
                trial.why = out_of_time(time_budget)
            trial.save(project)
            RunFolder(folder_of(project, trial.name)).update_run(status="interrupted")
    return trials
