"""What becomes of the records and the weights of trials when a sweep begins, goes on and ends."""

from __future__ import annotations

import shutil
from pathlib import Path

from orpo_dist.runs.folder import RunFolder
from orpo_dist.runs.lineage import ASIDE, SAVING
from orpo_dist.sweeps.protocol import (
    Trial,
    folder_of,
    forget_failure,
    out_of_time,
    read_failure,
    read_trials,
    rounds_of,
)


def drop_weights(folder: Path, checkpoints_only: bool) -> None:
    """Delete the checkpoints of a run, and its model too; what it has logged stays."""
    for name in ("checkpoint-*", ASIDE, SAVING):
        for checkpoint in folder.glob(name):
            shutil.rmtree(checkpoint, ignore_errors=True)
    for weights in [] if checkpoints_only else folder.glob("*.safetensors"):
        weights.unlink()


def crashed_trials(project: Path) -> list[Trial]:
    """Failed trials of a sweep and its rounds whose settings were not what they failed by."""
    found = []
    for folder in rounds_of(project):
        for trial in read_trials(folder):
            failure = read_failure(folder_of(folder, trial.name))
            if trial.status == "failed" and not (failure and failure.final):
                found.append(trial)
    return found


def forget_failures(folder: Path) -> None:
    """Let failed trials start again from their newest checkpoints."""
    for trial in read_trials(folder):
        if trial.status == "failed":
            forget_failure(folder_of(folder, trial.name))
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
