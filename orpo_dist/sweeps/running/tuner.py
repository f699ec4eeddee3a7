"""A sweep as Ray Tune takes it: trials with names, a scheduler, a searcher, and where all lies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from orpo_dist.sweeps.running.cluster import capacities, idle_share
from orpo_dist.sweeps.running.trial import trainable
from orpo_dist.sweeps.running.tuning import Tuning
from orpo_dist.sweeps.searched.config import PAUSING, SweepConfig
from orpo_dist.sweeps.searched.space import Settings, shown

STATE = "ray"  # what Ray keeps of a sweep, in the sweep's folder


def make_tuner(
    config: SweepConfig,
    tuning: Tuning,
    project: Path,
    at_once: int,
    worker: dict[str, float],
    going_on: bool,
    retry_failed: bool,
) -> Any:
    """Ray Tune's ``Tuner`` of a sweep in its folder. at_once: trials; worker: resources of one.

    going_on: with what Ray has kept of it. To be called where Ray is ready.
    """
    from ray import tune

    from orpo_dist.sweeps.running.live import Live  # is of a class of Ray's

    share = idle_share(capacities(), at_once)
    function = tune.with_resources(trainable(config, project, worker), share)
    if going_on:
        return tune.Tuner.restore(
            str(project / STATE),
            function,
            resume_unfinished=True,
            resume_errored=retry_failed,
            param_space=tuning.space,
        )
    several = len(config.metrics) > 1
    metric, mode = next(iter(config.metrics.items()))
    named = config.scheduler_name not in PAUSING
    return tune.Tuner(
        function,
        param_space=tuning.space,
        tune_config=tune.TuneConfig(
            metric=None if several else metric,
            mode=None if several else mode,
            search_alg=tuning.searcher,
            scheduler=tuning.scheduler,
            num_samples=config.number_of_trials if config.proposes else 1,
            max_concurrent_trials=at_once if named else None,
            time_budget_s=config.time_budget,
            trial_name_creator=_namer(config, named),
            trial_dirname_creator=_namer(config, False),
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=str(project),
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1 if named else None),
            callbacks=[Live(config, project)],
            verbose=0,
        ),
    )


def _namer(config: SweepConfig, with_settings: bool) -> Any:
    """Names of trials: their number or id, and where settings stay the same, what they are."""

    def name(trial: Any) -> str:
        number = str(trial.trial_id).rpartition("_")[2]
        number = f"{int(number):03d}" if number.isdigit() and not config.proposes else number[:8]
        return trial_name(number, config.settings_of(trial.config) if with_settings else {})

    return name


def trial_name(number: str, settings: Settings) -> str:
    """``003-orpo_alpha=0.5-lr=1e-05``, short and fit for a file system."""
    parts = [f"{name}={shown(value)}" for name, value in settings.items()]
    text = "-".join([number, *parts])
    return re.sub(r"[^\w=.,+-]", "_", text)[:100]
