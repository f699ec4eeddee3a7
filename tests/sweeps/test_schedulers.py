"""Schedulers and searchers of Ray Tune at work; minutes each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orpo_dist.sweeps.protocol import read_trials
from tests.launching import curve
from tests.sweeps.running import done, run_of, sweep

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

ALONE = {"workers_per_trial": 1, "resources_per_worker": {"CPU": 1}}


def test_a_population_passes_on_weights_with_rates_of_their_own(write_sweep: Any) -> None:
    space = {"lr": {"choice": [1e-6, 1e-3, 3e-3]}}
    file, project = write_sweep(
        space, steps=60, num_samples=3, scheduler={"name": "pbt", "perturbation_interval": 20},
        base={"scheduler": "constant", "warmup_ratio": 0.0},
    )  # fmt: skip
    done(sweep(str(file)))
    trials = read_trials(project)
    assert len(trials) == 3 and all(t.status == "finished" for t in trials)
    changed = [t for t in trials if t.changes]
    assert changed
    for trial in changed:
        last = trial.changes[-1]
        rates = curve(project / "trials" / trial.name, "learning_rate")
        assert rates[max(rates)] == pytest.approx(last["lr"])


def test_optuna_proposes_and_two_metrics_are_weighed(write_sweep: Any) -> None:
    pytest.importorskip("optuna")
    space = {"orpo_alpha": {"uniform": [0, 2]}, "lr": {"loguniform": [1e-4, 1e-2]}}
    file, project = write_sweep(
        space, steps=8, searcher="optuna", metric=["accuracy", "perplexity"], num_samples=4,
        workers_per_trial=1, resources_per_worker={"CPU": 1},
    )  # fmt: skip
    done(sweep(str(file)))
    trials = read_trials(project)
    assert len(trials) == 4 and all(t.status == "finished" for t in trials)
    assert len({t.settings["lr"] for t in trials}) == 4
    assert all(run_of(project, t)["engine"] == "single" for t in trials)
    assert json.loads((project / "sweep.json").read_text())["front"]


def check_halving(project: Any, number: int, scheduler: str) -> None:
    """All trials have an end, some before the last step; evaluations follow each other."""
    trials = read_trials(project)
    assert len(trials) == number
    assert {t.status for t in trials} == {"finished", "stopped"}
    for trial in trials:
        if trial.status == "stopped":
            assert trial.why.startswith(f"{scheduler} at step") and trial.step < 40
        else:
            assert trial.step == 40
        evaluated = curve(project / "trials" / trial.name, "eval/loss/sft")
        assert sorted(evaluated) == list(range(4, max(evaluated) + 1, 4))


def test_hyperband_pauses_trials_and_goes_on_with_the_better_ones(write_sweep: Any) -> None:
    # The first bracket is four trials that are never compared, the second one halves the others.
    space = {"lr": {"grid": [1e-6, 2e-6, 4e-6, 8e-6, 1e-5, 1e-3, 3e-3]}}
    file, project = write_sweep(
        space, scheduler={"name": "hyperband", "reduction_factor": 4}, **ALONE
    )
    done(sweep(str(file)))
    check_halving(project, 7, "hyperband")
    first, second = (
        [t.status for t in read_trials(project) if (t.settings["lr"] < 1e-5) is small]
        for small in (True, False)
    )
    assert set(first) == {"finished"} and set(second) == {"finished", "stopped"}


def test_bohb_proposes_points_and_halves(write_sweep: Any) -> None:
    pytest.importorskip("ConfigSpace")
    pytest.importorskip("hpbandster")
    space = {"lr": {"loguniform": [1e-6, 3e-3]}, "orpo_alpha": {"choice": [0.1, 0.5]}}
    file, project = write_sweep(
        space, scheduler={"name": "bohb", "reduction_factor": 4}, searcher="bohb", num_samples=7,
        **ALONE,
    )  # fmt: skip
    done(sweep(str(file)))
    check_halving(project, 7, "bohb")


def test_pb2_passes_on_weights_with_rates_from_a_model_of_what_helps(write_sweep: Any) -> None:
    pytest.importorskip("sklearn")
    space = {"lr": {"uniform": [1e-6, 3e-3]}}
    file, project = write_sweep(
        space, steps=60, num_samples=3, scheduler={"name": "pb2", "perturbation_interval": 20},
        base={"scheduler": "constant", "warmup_ratio": 0.0}, **ALONE,
    )  # fmt: skip
    done(sweep(str(file)))
    trials = read_trials(project)
    assert len(trials) == 3 and all(t.status == "finished" for t in trials)
    changes = [change for trial in trials for change in trial.changes]
    assert changes and all(1e-6 <= change["lr"] <= 3e-3 for change in changes)
