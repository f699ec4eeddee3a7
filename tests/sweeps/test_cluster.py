"""How many trials fit, and what Ray Tune is given."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.sweeps.running import cluster
from orpo_dist.sweeps.running.cluster import (
    concurrent_trials,
    idle_share,
    resources_of_worker,
    slots,
)
from orpo_dist.sweeps.searched.files import load_sweep

SPACE = {"orpo_alpha": {"grid": [0, 1]}}
DGX = {"CPU": 128.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("machines", "worker", "workers", "one_machine", "fit"),
    [
        ([DGX], {"CPU": 1, "GPU": 1}, 8, False, 1),
        ([DGX] * 3, {"CPU": 1, "GPU": 1}, 8, False, 3),
        ([DGX] * 3, {"CPU": 1, "GPU": 1}, 12, False, 2),
        ([DGX] * 3, {"CPU": 1, "GPU": 1}, 12, True, 0),
        ([DGX, {"CPU": 4.0}], {"CPU": 1, "GPU": 1}, 4, False, 2),
        ([{"CPU": 2.0}], {"CPU": 0.5, "GPU": 0}, 2, False, 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"CPU": 2}, 2, False, 1),  # a worker is not split
        ([{"CPU": 0.3}], {"CPU": 0.1}, 3, False, 1),  # 0.3 / 0.1 is 2.99… in binary
        ([{"CPU": 8.0}], {"CPU": 1, "GPU": 1}, 1, False, 0),
    ],
)
def test_how_many_trials_fit_at_once(
    machines: list[dict[str, float]],
    worker: dict[str, float],
    workers: int,
    one_machine: bool,
    fit: int,
) -> None:
    assert slots(machines, worker, workers, one_machine) == fit


def test_a_worker_has_a_gpu_where_there_are_any() -> None:
    sweep = load_sweep({"space": SPACE})
    assert resources_of_worker(sweep, [{"CPU": 4.0}, DGX]) == {"CPU": 1.0, "GPU": 1.0}
    assert resources_of_worker(sweep, [{"CPU": 4.0}]) == {"CPU": 1.0}
    shared = load_sweep({"space": SPACE, "resources_per_worker": {"GPU": 0.5, "CPU": 2}})
    assert resources_of_worker(shared, [DGX]) == {"CPU": 2.0, "GPU": 0.5}


@pytest.mark.parametrize(
    ("memory", "at_once", "fit"),
    [([10.0], 4, 4), ([10.0, 10.0], 4, 4), ([10.0, 4.0], 3, 3), ([8.0, 8.0], 3, 4), ([5.0], 1, 1)],
)
def test_as_many_trial_processes_fit_as_trials(memory: list[float], at_once: int, fit: int) -> None:
    gib = 1 << 30
    share = idle_share([{"memory": m * gib} for m in memory], at_once)
    assert share["CPU"] == 0
    assert sum(int(m * gib // share["memory"]) for m in memory) == fit


def test_a_trial_that_never_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "capacities", lambda: [DGX])
    sweep = load_sweep({"space": SPACE, "workers_per_trial": 16})
    with pytest.raises(
        UserError, match=r"needs 16 × \(1 CPU, 1 GPU\), and the cluster's 1 machine"
    ):
        concurrent_trials(sweep)
    assert concurrent_trials(load_sweep({"space": SPACE, "workers_per_trial": 4}))[0] == 2
    few = load_sweep({"space": SPACE, "max_concurrent_trials": 3})
    assert concurrent_trials(few)[0] == 3


ray = pytest.importorskip("ray")


def test_an_address_where_nothing_listens_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=f"RAY_ADDRESS {address}: nothing listens there"):
            cluster.connect()


def test_a_token_is_set_only_before_ray_has_read_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "ray", ray)
    cluster.prepare_environment()
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.delitem(sys.modules, "ray")
    os.environ["RAY_ADDRESS"] = ""
    cluster.prepare_environment()
    assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_ADDRESS" not in os.environ


def scheduler_of(**scheduler: object) -> object:
    from orpo_dist.sweeps.running.tuning import scheduler as make

    return make(load_sweep({"space": {"lr": {"uniform": [1e-6, 1e-4]}}, "scheduler": scheduler}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("asha", "AsyncHyperBandScheduler"),
        ("median", "MedianStoppingRule"),
        ("hyperband", "HyperBandScheduler"),
        ("pbt", "PopulationBasedTraining"),
    ],
)
def test_schedulers_count_in_per_cent_of_a_trial(name: str, kind: str) -> None:
    made = scheduler_of(name=name)
    assert type(made).__name__ == kind
    assert made._time_attr == "percent"  # type: ignore[attr-defined]


def test_an_option_that_a_scheduler_does_not_have_is_named() -> None:
    with pytest.raises(UserError, match="scheduler asha: has no option 'grace'; it has time_attr"):
        scheduler_of(name="asha", grace=3)
    with pytest.raises(UserError, match="none: has no option 'grace'"):
        scheduler_of(name="none", grace=3)
    with pytest.raises(UserError, match="scheduler asha: Reduction Factor not valid"):
        scheduler_of(name="asha", reduction_factor=0.5)


def test_what_is_not_installed_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from orpo_dist.sweeps.running.tuning import require_installed

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sweep = load_sweep({"space": {"lr": {"uniform": [1e-6, 1e-4]}}, "scheduler": "pb2"})
    with pytest.raises(UserError, match="pb2 needs scikit-learn: pip install scikit-learn"):
        require_installed(sweep)


def test_a_population_explores_within_the_space_only() -> None:
    made = scheduler_of(name="pbt")
    explore = made._custom_explore_fn  # type: ignore[attr-defined]
    config = {"settings": {"lr": 1e-3}}
    assert explore(config) == {"settings": {"lr": 1e-4}}
    assert list(made._hyperparam_mutations) == ["settings"]  # type: ignore[attr-defined]


def test_the_domains_of_a_searcher() -> None:
    from ray.tune.search import sample

    from orpo_dist.sweeps.running.tuning import param_space

    space = {
        "lr": {"loguniform": [1e-6, 1e-4]},
        "lora_r": {"randint": [1, 4]},
        "orpo_alpha": {"choice": [0.1, 0.2]},
    }
    made = param_space(load_sweep({"space": space, "searcher": "optuna"}))["settings"]
    assert isinstance(made["orpo_alpha"], sample.Categorical)
    assert (made["lora_r"].lower, made["lora_r"].upper) == (1, 5)  # Tune leaves out the end
    assert isinstance(made["lr"].get_sampler(), sample.LogUniform)
    grid = param_space(load_sweep({"space": SPACE}))
    assert grid == {"settings": {"grid_search": [{"orpo_alpha": 0.0}, {"orpo_alpha": 1.0}]}}
