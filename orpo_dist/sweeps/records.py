"""What is known of a trial: one small file in its run folder, kept by the driver of the sweep."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from orpo_dist.folder import read_json, write_json
from orpo_dist.sweeps.metrics import METRICS

RECORD = "trial.json"
# finished: trained to its end. stopped: by the scheduler or the time budget.
# interrupted: not over when the sweep ended; --resume goes on with it.
STATUSES = ("waiting", "running", "finished", "stopped", "failed", "interrupted")


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


def drop_weights(folder: Path, checkpoints_only: bool) -> None:
    """Delete the checkpoints of a run, and its model too; what it has logged stays."""
    for checkpoint in folder.glob("checkpoint-*"):
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
