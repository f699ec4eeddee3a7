"""While a sweep runs: the driver's record of every trial, and a table in the terminal."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from orpo_dist.runs.folder import RunFolder
from orpo_dist.sweeps.found.ranking import rank, rank_by_point
from orpo_dist.sweeps.protocol import (
    Trial,
    folder_of,
    forget_placement,
    out_of_time,
    read_failure,
    read_placement,
    read_trials,
)
from orpo_dist.sweeps.running.records import drop_weights
from orpo_dist.sweeps.running.stopping import watch
from orpo_dist.sweeps.searched.config import PAUSING, SweepConfig
from orpo_dist.sweeps.searched.space import shown

PERIOD = 1.0  # s between two paintings of the table


class Live(Callback):
    """Ray Tune's callback in the driver.

    Pickled with the sweep by Ray, so that what belongs to this process is made at first use.
    """

    def __init__(self, sweep: SweepConfig, project: Path):
        self.content, self.project = sweep.model_dump(), str(project)
        self._state: _State | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_state": None}

    @property
    def state(self) -> _State:
        if self._state is None:
            sweep = SweepConfig.model_validate(self.content)
            self._state = _State(sweep, Path(self.project))
        return self._state

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        watch()
        self.state.free_paused(trials)
        self.state.paint()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.state.start(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.state.report(trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.state.complete(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.state.lose(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.state.fail(trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.state.paint(last=True)


class _State:
    """The trials as this driver knows them."""

    def __init__(self, sweep: SweepConfig, project: Path):
        self.sweep, self.project = sweep, project
        self.trials = {trial.name: trial for trial in read_trials(project)}
        self.began = time.monotonic()
        self.screen = Screen()

    def _of(self, trial: Any) -> Trial:
        name = str(trial)
        if name not in self.trials:
            self.trials[name] = Trial(name, self.sweep.settings_of(trial.config))
        return self.trials[name]

    def free_paused(self, trials: list[Any]) -> None:
        """A paused trial's process is ended without a word to callbacks."""
        if self.sweep.scheduler_name not in PAUSING:
            return
        for trial in trials:
            known = self.trials.get(str(trial))
            if trial.status == "PAUSED" and known is not None and known.status == "running":
                free_placement(folder_of(self.project, known.name))
                known.status = "waiting"
                self._keep(known, quiet=True)

    def start(self, trial: Any) -> None:
        known = self._of(trial)
        free_placement(folder_of(self.project, known.name))  # of an earlier start
        if known.over:  # Ray has forgotten its end; the trial will only report it again
            return
        settings = self.sweep.settings_of(trial.config)
        if settings != known.settings:
            known.changes.append({"step": known.step, **settings})
            known.settings = settings
        known.status, known.why = "running", ""
        self._keep(known)

    def report(self, trial: Any, result: dict[str, Any]) -> None:
        known = self._of(trial)
        if known.over:
            return
        known.take(result)
        if result.get("finished"):
            known.status = "finished"
        self._keep(known, quiet=not result.get("finished"))
        self.screen.evaluated(known, next(iter(self.sweep.metrics)))

    def complete(self, trial: Any) -> None:
        known = self._of(trial)
        free_placement(folder_of(self.project, known.name))
        if not known.over:
            budget = self.sweep.time_budget
            if budget is not None and time.monotonic() - self.began >= budget:
                known.status, known.why = "interrupted", out_of_time(budget)
            else:
                known.status, known.why = "stopped", self._why(known)
            run = RunFolder(folder_of(self.project, known.name))
            run.update_run(status=known.status, error=known.why)
            self._keep(known)
        self._prune()

    def _prune(self) -> None:
        """Delete the checkpoints of trials that have a model, and weights that are not to be kept.

        A population may still need the checkpoints of its members: they wait for its end. Failed
        trials may be tried again.
        """
        over = [t for t in self.trials.values() if t.over and t.status != "failed"]
        waiting = any(not trial.over for trial in self.trials.values())
        if self.sweep.scheduler_name in PAUSING and waiting:
            return
        best = rank_by_point(
            [trial for trial in over if trial.status == "finished"],
            *next(iter(self.sweep.metrics.items())),
        )
        keep = self.sweep.keep_models
        kept = best if keep == "all" else best[:keep]
        for trial in over:
            if trial in kept or keep != "all":
                drop_weights(folder_of(self.project, trial.name), checkpoints_only=trial in kept)

    def _why(self, trial: Trial) -> str:
        name = next(iter(self.sweep.metrics))
        value = trial.metrics.get(name)
        shown = "" if value is None else f", {name} {value:.4g}"
        return f"{self.sweep.scheduler_name} at step {trial.step} ({trial.percent:.0f} %){shown}"

    def lose(self, trial: Any) -> None:
        known = self._of(trial)
        free_placement(folder_of(self.project, known.name))
        known.failures += 1
        known.status, known.why = "waiting", f"restarted: {self._failure(trial)}"
        self._keep(known)

    def fail(self, trial: Any) -> None:
        known = self._of(trial)
        free_placement(folder_of(self.project, known.name))
        known.status, known.why = "failed", self._failure(trial)
        self._keep(known)

    def _failure(self, trial: Any) -> str:
        told = read_failure(folder_of(self.project, str(trial)))
        if told and told.reason:
            return told.reason
        lines = str(trial.get_error() or "the trial's own process was lost").splitlines()
        return lines[-1].strip()[:300]

    def _keep(self, trial: Trial, quiet: bool = False) -> None:
        trial.save(self.project)
        if not quiet:
            self.screen.changed(trial)

    def paint(self, last: bool = False) -> None:
        self.screen.paint(list(self.trials.values()), self.sweep, last)


def free_placement(folder: Path) -> None:
    """Give back what the workers of a trial hold, which also ends them.

    Ray Train leaves this to an actor that asks the dashboard whether the trial is gone; where there
    is no dashboard, resources of stopped trials would be held for ever.
    """
    if name := read_placement(folder):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
        forget_placement(folder)


class Screen:
    """A table that is painted over itself in a terminal; single lines where no one watches."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.height, self.painted = 0, 0.0

    def changed(self, trial: Trial) -> None:
        if not self.live and trial.status != "waiting":
            why = f": {trial.why}" if trial.why else ""
            print(f"{trial.name}  {trial.status}{why}", file=sys.stderr, flush=True)

    def evaluated(self, trial: Trial, metric: str) -> None:
        if not self.live and metric in trial.metrics:
            value = f"{metric} {trial.metrics[metric]:.4f}"
            print(f"{trial.name}  step {trial.step}  {value}", file=sys.stderr, flush=True)

    def paint(self, trials: list[Trial], sweep: SweepConfig, last: bool) -> None:
        if not self.live or (time.monotonic() - self.painted < PERIOD and not last):
            return
        self.painted = time.monotonic()
        size = shutil.get_terminal_size((120, 40))
        lines = table(trials, sweep, None if last else size.lines - 2)
        up = f"\x1b[{self.height}A\x1b[J" if self.height else ""
        text = "\n".join(line[: size.columns - 1] for line in lines)
        print(up + text, file=sys.stderr, flush=True)
        self.height = 0 if last else len(lines)


def table(trials: list[Trial], sweep: SweepConfig, most: int | None = None) -> list[str]:
    """The trials as lines of text: what runs first, then the best. most: lines that there are."""
    ranked = rank(trials, *next(iter(sweep.metrics.items())))
    names = list(dict.fromkeys(name for trial in trials for name in trial.settings))
    metrics = list(sweep.metrics)
    head = ["trial", *names, "step", *metrics, "status"]
    rows = [
        [
            trial.name.split("-")[0],
            *(shown(trial.settings.get(name, "")) for name in names),
            str(trial.step),
            *(f"{trial.metrics[m]:.4f}" if m in trial.metrics else "" for m in metrics),
            trial.status + (f": {trial.why}" if trial.why else ""),
        ]
        for trial in sorted(ranked, key=lambda t: t.status != "running")
    ]
    kept = rows if most is None or len(rows) < most else rows[: max(1, most - 2)]
    widths = [max(len(row[i]) for row in [head, *kept]) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in [head, *kept]
    ]
    if len(kept) < len(rows):
        lines.append(f"… and {len(rows) - len(kept)} more")
    return [line.rstrip() for line in lines]
