"""The files by which the processes of a sweep speak with each other, and with whoever reads it.

In the folder of a sweep, and in ``round-N/`` of each finer one below it:

| file          | holds                                            | written by | read by         |
|---------------|--------------------------------------------------|------------|-----------------|
| `sweep.yaml`  | the sweep as it was resolved                     | driver     | --resume, pages |
| `sweep.json`  | points, ranks, advice, trials                    | driver     | programs        |
| `sweep.csv`   | a line per trial                                 | driver     | tables          |
| `best.yaml`   | the config of the best run                       | driver     | train --config  |

In the folder of a trial, beside the files of its run:

| file             | holds                                         | written by | read by         |
|------------------|-----------------------------------------------|------------|-----------------|
| `trial.json`     | what is known of it (``Trial``)               | driver     | --resume, pages |
| `failure.json`   | why its last attempt failed (``Failure``)     | workers    | trial, driver   |
| `placement.json` | Ray's name for what its workers hold          | rank 0     | driver          |
| `.reports-*`     | its evaluations, a line each (``Reports``)    | controller | trial           |

And in each of Ray's checkpoints `place.json` (``Place``): whose it is and where the real one lies,
written by the trial, read by the one that goes on from it.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.runs.folder import read_json, write_json
from orpo_dist.sweeps.searched.config import SweepConfig
from orpo_dist.sweeps.searched.files import dump_sweep, load_sweep
from orpo_dist.sweeps.searched.metrics import METRICS

SWEEP, SUMMARY, TABLE, BEST = "sweep.yaml", "sweep.json", "sweep.csv", "best.yaml"
RECORD, FAILURE, PLACEMENT, REPORTS = "trial.json", "failure.json", "placement.json", ".reports-"
PLACE = "place.json"

# finished: trained to its end. stopped: by the scheduler or the time budget.
# interrupted: not over when the sweep ended; --resume goes on with it.
STATUSES = ("waiting", "running", "finished", "stopped", "failed", "interrupted")

OUT_OF_TIME = "time budget"  # begins the reason of trials that it has interrupted


def out_of_time(seconds: float) -> str:
    return f"{OUT_OF_TIME} of {seconds:g} s"


# --- where things lie


def folder_of(project: Path, name: str) -> Path:
    """The run folder of a trial."""
    return project / "trials" / name


def round_folder(project: Path, number: int) -> Path:
    """Where the finer sweep of a round is, from 2 on; rounds were once called stages."""
    before = project / f"stage-{number}"
    return before if before.exists() else project / f"round-{number}"


def rounds_of(project: Path) -> list[Path]:
    """The folders of a sweep: its own, then those of its finer rounds."""
    return [project, *sorted((*project.glob("stage-*"), *project.glob("round-*")))]


# --- of a sweep


def holds_sweep(folder: Path) -> bool:
    return (folder / SWEEP).exists()


def read_sweep(folder: Path) -> SweepConfig:
    """The sweep in a folder; ``UserError`` if it holds none."""
    if not holds_sweep(folder):
        raise UserError(f"{folder}: is not the folder of a sweep (it has no {SWEEP})")
    return load_sweep(folder / SWEEP)


def write_sweep(folder: Path, sweep: SweepConfig) -> None:
    (folder / SWEEP).write_text(dump_sweep(sweep), encoding="utf-8")


def write_summary(
    folder: Path,
    *,
    metrics: dict[str, str],
    advice: Sequence[str],
    best: dict[str, Any] | None,
    points: Sequence[dict[str, Any]],
    front: Sequence[dict[str, Any]],
    trials: Sequence[Trial],
) -> None:
    """metrics: with what is better. best: name, settings, metrics. front: settings of its points.

    points: settings, how many trials have finished, and an estimate per metric.
    """
    content = {"metrics": metrics, "advice": list(advice), "best": best, "points": list(points)}
    content |= {"front": list(front), "trials": [vars(trial) for trial in trials]}
    write_json(folder / SUMMARY, content)


def write_table(folder: Path, trials: Sequence[Trial]) -> None:
    settings = list(dict.fromkeys(name for t in trials for name in t.settings))
    metrics = list(dict.fromkeys(name for t in trials for name in t.metrics))
    plain = ("name", "status", "why", "step", "percent", "seconds", "failures")
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*plain, *settings, *metrics])
        for trial in trials:
            rows.writerow(
                [getattr(trial, name) for name in plain]
                + [trial.settings.get(name, "") for name in settings]
                + [trial.metrics.get(name, "") for name in metrics]
            )


def write_best(folder: Path, text: str) -> None:
    """text: YAML that ``train --config`` takes."""
    (folder / BEST).write_text(text, encoding="utf-8")


# --- of a trial


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


def read_trial(folder: Path) -> Trial | None:
    """The trial of a folder; None if its record is missing or broken."""
    content = read_json(folder / RECORD)
    known = {field.name for field in fields(Trial)}
    try:
        return Trial(**{name: value for name, value in content.items() if name in known})
    except TypeError:
        return None


def read_trials(project: Path) -> list[Trial]:
    """All trials that a sweep's folder holds a record of, by name."""
    found = (read_trial(path.parent) for path in sorted(project.glob(f"trials/*/{RECORD}")))
    return [trial for trial in found if trial is not None]


@dataclass(frozen=True)
class Failure:
    """reason: may be empty. final: it would come again. rank, traceback: if a worker left it."""

    reason: str
    final: bool
    rank: int | None = None
    traceback: str = ""

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FAILURE, asdict(self))


def read_failure(folder: Path) -> Failure | None:
    """Why the last attempt of a trial has failed; None where nobody has said so."""
    content = read_json(folder / FAILURE)
    if not content:
        return None
    return Failure(str(content.get("reason", "")), bool(content.get("final")))


def forget_failure(folder: Path) -> None:
    (folder / FAILURE).unlink(missing_ok=True)


def write_placement(folder: Path, name: str | None) -> None:
    """name: of the placement group, in hexadecimal; None where the workers hold none."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLACEMENT, {"id": name})


def read_placement(folder: Path) -> str | None:
    name = read_json(folder / PLACEMENT).get("id")
    return str(name) if name else None


def forget_placement(folder: Path) -> None:
    (folder / PLACEMENT).unlink()


@dataclass(frozen=True)
class Place:
    """trial: its name. checkpoint: a path."""

    trial: str
    checkpoint: str

    def save(self, folder: Path) -> None:
        write_json(folder / PLACE, asdict(self))


def read_place(folder: Path) -> Place | None:
    """Where the real checkpoint lies; None where this says nothing."""
    content = read_json(folder / PLACE)
    return Place(content["trial"], content["checkpoint"]) if content else None


class Reports:
    """What a group of workers tells its trial: a file of lines, to which the group's controller
    appends. Ray Train starts that on the machine of the trial, so they see the same file.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{REPORTS}*"):  # of a trial that was killed
            old.unlink()
        self.path = folder / f"{REPORTS}{os.getpid()}.jsonl"
        self.path.touch()
        self._read = 0

    def add(self, report: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")

    def new(self) -> list[dict[str, Any]]:
        """Those added since the last call; a line that is half written waits for the next."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            found = file.read()
        whole = found[: found.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
