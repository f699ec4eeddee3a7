"""``sweep``: from a sweep file to a folder of runs and what follows from them."""

from __future__ import annotations

import logging
import shutil
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_dist.base.exits import EXIT_INTERRUPTED, EXIT_REQUEUE
from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.runs.lock import LOCK, held
from orpo_dist.sweeps.found.advice import advise
from orpo_dist.sweeps.found.page import write_page
from orpo_dist.sweeps.found.refine import refined, refuse_unrefinable
from orpo_dist.sweeps.found.results import read_results
from orpo_dist.sweeps.protocol import (
    OUT_OF_TIME,
    Trial,
    holds_sweep,
    read_sweep,
    read_trials,
    round_folder,
    write_sweep,
)
from orpo_dist.sweeps.running.cluster import (
    concurrent_trials,
    connect,
    prepare_environment,
)
from orpo_dist.sweeps.running.records import forget_failures, settle_records
from orpo_dist.sweeps.running.shared import prepare_shared, refuse_unfit
from orpo_dist.sweeps.running.stopping import StopSignals
from orpo_dist.sweeps.running.tuner import STATE, make_tuner
from orpo_dist.sweeps.running.tuning import Tuning, tuning_of
from orpo_dist.sweeps.searched.config import PAUSING, SweepConfig
from orpo_dist.sweeps.searched.files import load_sweep

if TYPE_CHECKING:
    from ray.tune import ResultGrid

logger = logging.getLogger("orpo_dist")

# What may be another when a sweep goes on.
MAY_CHANGE = (
    "resources_per_worker", "placement", "max_concurrent_trials", "max_failures", "time_budget",
    "keep_models",
)  # fmt: skip
LIMITS = ("max_concurrent_trials", "max_failures", "time_budget", "keep_models")  # Ray keeps these
# Settings of a sweep that no run has, so that they can only be meant for the sweep.
OWN_SETTINGS = set(SweepConfig.model_fields) - set(ORPOConfig.model_fields) - {"base", "space"}


def refuse_stages(given: Any) -> None:
    """``UserError`` for the old word of ``rounds``; the stages of a training are no number."""
    if isinstance(given, int):
        raise UserError(f"stages {given}: finer sweeps are now called rounds: pass rounds={given}")


class SweepInterrupted(Exception):
    """A sweep was asked to stop, and can go on; the message says how."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def sweep(
    source: str | Path | Mapping[str, Any] | SweepConfig,
    project_name: str | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    rounds: int = 1,
    **base: Any,
) -> ResultGrid:
    """Run all trials of a sweep into one folder; returns Ray's ``ResultGrid`` of the last round.

    source: a sweep file, the name of a shipped one, or its content. base: settings of every trial
    that win over the file's, and of the sweep itself where a run has none of that name
    (``repeats=3``). resume: go on with a sweep that was interrupted, keeping what is
    finished; a new one starts where there is none. retry_failed: its failed trials as well.
    rounds: 2 and more add finer sweeps around the best point so far.
    Raises ``UserError``, and ``SweepInterrupted`` after Ctrl-C, SIGTERM or SIGUSR1.
    """
    refuse_stages(base.get("stages"))
    if project_name is not None:
        base["project_name"] = project_name
    own = {name: base.pop(name) for name in list(base) if name in OWN_SETTINGS}
    content = source.model_dump() if isinstance(source, SweepConfig) else source
    if base or own or not isinstance(source, SweepConfig):
        source = load_sweep(content, base, own)
    assert isinstance(source, SweepConfig)
    prepare_environment()
    tuning = tuning_of(source)
    refuse_unfit(source)
    if rounds > 1:
        refuse_unrefinable(source)
    project = Path(source.project_name).expanduser().resolve()
    with held(project):
        return _sweep_in(project, source, tuning, resume, retry_failed, rounds)


def _sweep_in(
    project: Path,
    source: SweepConfig,
    tuning: Tuning,
    resume: bool,
    retry_failed: bool,
    rounds: int,
) -> ResultGrid:
    """``sweep`` in a folder that is this sweep's alone."""
    going_on = open_project(project, source, resume)
    ours = connect()
    try:
        prepare_shared(source)
        grid = _run(source, tuning, project, project, going_on, retry_failed, rounds == 1)
        for number in range(2, rounds + 1):
            folder = round_folder(project, number)
            begun = resume and holds_sweep(folder)
            finer = read_sweep(folder) if begun else refined(read_results(project), number)
            tuning = tuning_of(finer)
            refuse_unfit(finer)
            prepare_shared(finer)
            going_on = open_project(folder, finer, resume)
            grid = _run(finer, tuning, folder, project, going_on, retry_failed, number == rounds)
    finally:
        if ours:
            import ray

            ray.shutdown()
    return grid


def open_project(project: Path, config: SweepConfig, resume: bool) -> bool:
    """Make the folder ready; whether to go on with what Ray has kept of a sweep in it.

    Otherwise Ray begins anew over the same trials: those that are over only report their ends
    (``trial.settled_report``), others go on from their checkpoints. So what limits a sweep may be
    changed, but for a searcher or a population, whose knowledge Ray alone has. Raises ``UserError``
    where there is a sweep and ``resume`` is off, or where it is another one. One that has not come
    to a trial leaves nothing to lose.
    """
    state, begun = project / STATE, holds_sweep(project)
    known, ray_goes_on = read_trials(project), False
    if begun and known:
        if not resume:
            raise UserError(
                f"project_name {project}: already holds a sweep; choose another name, or go on "
                "with --resume"
            )
        before = read_sweep(project)
        _require_same(before, config, project)
        if (state / "tuner.pkl").exists():
            ray_goes_on = _ray_goes_on(before, config, known, project)
    elif not begun and {path.name for path in project.glob("*")} - {LOCK}:
        raise UserError(f"project_name {project}: is not empty and holds no sweep")
    try:
        project.mkdir(parents=True, exist_ok=True)
        write_sweep(project, config)
        if not ray_goes_on and state.exists():
            shutil.rmtree(state)
    except OSError as error:
        raise UserError(f"project_name {project}: cannot be written ({error.strerror})") from error
    return ray_goes_on


def _ray_goes_on(before: SweepConfig, now: SweepConfig, known: list[Trial], project: Path) -> bool:
    """Whether what Ray has kept serves a sweep that goes on; ``UserError`` where it would have to
    and cannot."""
    why = next((name for name in LIMITS if getattr(before, name) != getattr(now, name)), None)
    if any(trial.why.startswith(OUT_OF_TIME) for trial in known if not trial.over):
        why = "time_budget"
    if why is not None and (now.proposes or now.scheduler_name in PAUSING):
        kind = "searcher" if now.proposes else "scheduler"
        name = now.searcher_name if now.proposes else now.scheduler_name
        raise UserError(
            f"project_name {project}: {kind} {name} goes on with the {why} that it was started "
            "with; choose another name for a new sweep"
        )
    return why is None


def _require_same(before: SweepConfig, now: SweepConfig, project: Path) -> None:
    """``UserError`` where going on would mix trials that are not comparable."""
    then, wanted = before.model_dump(), now.model_dump()
    for name in sorted(set(then) - set(MAY_CHANGE)):
        if name == "base":
            names = {*then["base"], *wanted["base"]} - {"project_name"}
            changed = [n for n in sorted(names) if then["base"].get(n) != wanted["base"].get(n)]
        else:
            changed = [name] if then[name] != wanted[name] else []
        if changed:
            raise UserError(
                f"project_name {project}: holds a sweep with another {changed[0]}; go on with the "
                "same settings, or choose another name"
            )


def _run(
    config: SweepConfig,
    tuning: Tuning,
    folder: Path,
    project: Path,
    going_on: bool,
    retry_failed: bool,
    last: bool,
) -> ResultGrid:
    """One round in its folder; the page is that of the whole project."""
    at_once, worker = concurrent_trials(config)
    tell_what_runs(config, at_once, worker, folder)
    if retry_failed:
        forget_failures(folder)
    tuner = make_tuner(config, tuning, folder, at_once, worker, going_on, retry_failed)
    with StopSignals() as stop, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Tune's hints are about its own defaults
        grid = tuner.fit()
    trials = settle_records(folder, config.time_budget if stop.number is None else None)
    write_page(project)
    for sentence in advise(read_results(project)):
        logger.info(sentence)
    over = sum(trial.over for trial in trials) == config.number_of_trials
    if stop.number is not None and not (over and last):
        code = EXIT_REQUEUE if stop.number == signal.SIGUSR1 else EXIT_INTERRUPTED
        raise SweepInterrupted(
            "the sweep was stopped; go on with the same command and --resume", code
        )
    return grid


def tell_what_runs(
    config: SweepConfig, at_once: int, worker: dict[str, float], project: Path
) -> None:
    """One line of derived truth."""
    each = ", ".join(f"{amount:g} {name}" for name, amount in worker.items() if amount)
    logger.info(
        "%d trials, %d at once, each %d × %s with %s; %s %s; into %s",
        config.number_of_trials, at_once, config.workers_per_trial, config.engine_of({}), each,
        next(iter(config.metrics)), next(iter(config.metrics.values())), project,
    )  # fmt: skip
