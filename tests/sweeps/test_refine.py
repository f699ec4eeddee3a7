"""The finer space around the best point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.sweeps.found.refine import refined, refuse_unrefinable
from orpo_dist.sweeps.found.results import read_results
from orpo_dist.sweeps.searched.files import load_sweep
from tests.sweeps.folders import alphas, make_sweep, trial


def best_of(project: Path, space: dict[str, Any], *tried: tuple[dict[str, Any], float]) -> Any:
    """The next space, after trials with these settings and accuracies."""
    made = [
        trial(f"t{i}", accuracy, 3.0, **settings) for i, (settings, accuracy) in enumerate(tried)
    ]
    return refined(read_results(make_sweep(project, {"space": space}, *made)), 2).space


def test_a_grid_gets_finer_between_the_neighbours_of_the_best(tmp_path: Path) -> None:
    sweep = refined(read_results(alphas(tmp_path / "s")), 2)
    assert sweep.space == {"orpo_alpha": {"grid": [0.166667, 0.333333, 0.666667, 0.833333]}}
    assert sweep.repeats == 3
    assert sweep.project_name == str(tmp_path / "s" / "round-2")


def test_the_end_of_a_grid_reaches_beyond_but_not_where_nothing_is_allowed(tmp_path: Path) -> None:
    space = {"orpo_alpha": {"grid": [0, 0.3]}}
    tried = ({"orpo_alpha": 0.0}, 0.6), ({"orpo_alpha": 0.3}, 0.7)
    assert best_of(tmp_path / "a", space, *tried) == {"orpo_alpha": {"grid": [0.1, 0.2, 0.4, 0.5]}}
    tried = ({"orpo_alpha": 0.0}, 0.8), ({"orpo_alpha": 0.3}, 0.7)
    assert best_of(tmp_path / "b", space, *tried) == {"orpo_alpha": {"grid": [0.1, 0.2]}}


def test_rates_are_refined_in_their_logarithm(tmp_path: Path) -> None:
    space = {"lr": {"grid": [1e-6, 1e-5, 1e-4]}}
    tried = [({"lr": 1e-6}, 0.5), ({"lr": 1e-5}, 0.7), ({"lr": 1e-4}, 0.6)]
    (grid,) = (entry["grid"] for entry in best_of(tmp_path, space, *tried).values())
    assert grid == [2.15443e-06, 4.64159e-06, 2.15443e-05, 4.64159e-05]


def test_a_range_becomes_narrower_and_stays_inside(tmp_path: Path) -> None:
    space = {"orpo_alpha": {"uniform": [0, 2]}, "lr": {"loguniform": [1e-6, 1e-2]}}
    found = best_of(tmp_path, space, ({"orpo_alpha": 0.1, "lr": 1e-4}, 0.7))
    assert found["orpo_alpha"] == {"uniform": [0.0, 0.35]}
    assert found["lr"]["loguniform"] == pytest.approx([10**-4.5, 10**-3.5], rel=1e-5)


def test_every_stage_looks_closer(tmp_path: Path) -> None:
    space = {"orpo_alpha": {"uniform": [0, 2]}}
    project = make_sweep(tmp_path, {"space": space}, trial("a", 0.7, 3.0, orpo_alpha=1.0))
    widths = []
    for number in (2, 3):
        low, high = refined(read_results(project), number).space["orpo_alpha"]["uniform"]
        widths.append(high - low)
    assert widths == pytest.approx([0.5, 0.125])


def test_what_no_run_takes_is_left_out_and_seeds_stay(tmp_path: Path) -> None:
    content = {
        "base": {"loss_form": "convex"},
        "space": {"orpo_alpha": {"grid": [0, 0.5, 1]}, "global_batch_size": {"grid": [8, 16, 32]},
                  "seed": {"grid": [0, 100]}},
        "workers_per_trial": 2,
    }  # fmt: skip
    tried = [
        trial(f"{a}-{b}-{s}", 0.5 + a / 10 + (b == 16) / 5, 3.0, orpo_alpha=a,
              global_batch_size=b, seed=s)
        for a in (0.0, 0.5, 1.0) for b in (8, 16, 32) for s in (0, 100)
    ]  # fmt: skip
    space = refined(read_results(make_sweep(tmp_path, content, *tried)), 2).space
    assert space["orpo_alpha"] == {"grid": [0.666667, 0.833333]}  # convex ends at 1
    assert space["global_batch_size"] == {"grid": [11, 13, 21, 27]}  # need not divide by anything
    assert space["seed"] == {"grid": [0]}


def test_a_space_without_numbers_has_nothing_finer() -> None:
    refuse_unrefinable(load_sweep({"space": {"orpo_alpha": {"grid": [0, 1]}}}))
    with pytest.raises(UserError, match="--rounds: no setting in the space is a number"):
        refuse_unrefinable(load_sweep({"space": {"scheduler": {"grid": ["cosine", "linear"]}}}))


def test_what_is_no_number_stays_at_its_best(tmp_path: Path) -> None:
    space = {"optimizer": {"grid": ["adamw_torch", "sgd"]}, "orpo_alpha": {"grid": [0, 1]}}
    tried = [
        ({"optimizer": o, "orpo_alpha": a}, 0.6 + (o == "sgd") / 10 + a / 100)
        for o in ("adamw_torch", "sgd")
        for a in (0.0, 1.0)
    ]
    assert best_of(tmp_path, space, *tried)["optimizer"] == {"grid": ["sgd"]}


def test_nothing_to_refine(tmp_path: Path) -> None:
    content = {"space": {"orpo_alpha": {"grid": [0, 1]}}}
    project = make_sweep(tmp_path, content, trial("a", 0.5, 3.0, orpo_alpha=1.0, status="failed"))
    with pytest.raises(UserError, match="no trial has finished"):
        refined(read_results(project), 2)
