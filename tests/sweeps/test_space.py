"""Spaces: what may be drawn, in which order, and what is refused."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.sweeps.searched.space import Space


def test_a_grid_is_walked_completely_and_in_order() -> None:
    space = Space({"orpo_alpha": {"grid": [0, 0.5]}, "lora_r": {"grid": [8, 16]}})
    assert space.points({}, 1, seed=0) == [
        {"orpo_alpha": 0.0, "lora_r": 8},
        {"orpo_alpha": 0.0, "lora_r": 16},
        {"orpo_alpha": 0.5, "lora_r": 8},
        {"orpo_alpha": 0.5, "lora_r": 16},
    ]


def test_random_values_are_drawn_anew_for_every_point_of_the_grid() -> None:
    space = Space({"orpo_alpha": {"grid": [0, 1]}, "lr": {"loguniform": ["1e-6", 1e-4]}})
    points = space.points({}, 3, seed=1)
    assert [p["orpo_alpha"] for p in points] == [0, 1] * 3
    assert len({p["lr"] for p in points}) == 6
    assert all(1e-6 <= p["lr"] <= 1e-4 for p in points)
    assert points == space.points({}, 3, seed=1) != space.points({}, 3, seed=2)


@pytest.mark.parametrize(
    ("content", "low", "high"),
    [
        ({"uniform": [0, 2]}, 0, 2),
        ({"loguniform": [1e-3, 10]}, 1e-3, 10),
        ({"quniform": [0.1, 0.95, 0.25]}, 0.1, 0.85),
    ],
)
def test_draws_fill_their_range_and_stay_in_it(content: Any, low: float, high: float) -> None:
    space = Space({"orpo_alpha": content})
    values = [p["orpo_alpha"] for p in space.points({}, 400, seed=0)]
    assert low <= min(values) and max(values) <= high
    if "quniform" in content:
        assert set(values) == {0.1, 0.35, 0.6, 0.85}
    elif "loguniform" in content:
        below = sum(v < 0.1 for v in values) / len(values)  # the middle in the logarithm
        assert 0.4 < below < 0.6
    else:
        assert 0.4 < sum(v < 1 for v in values) / len(values) < 0.6


def test_a_point_comes_once_unless_members_may_begin_alike() -> None:
    space = Space({"lora_r": {"choice": [8, 16]}})
    assert len(space.points({}, 9, seed=0)) == 2
    assert len(space.points({}, 9, seed=0, unique=False)) == 9


def test_whole_numbers_are_drawn_whole_and_their_ends_as_often() -> None:
    (parameter,) = Space({"lora_r": {"randint": [1, 4]}})
    rng = random.Random(0)  # noqa: S311
    drawn = [parameter.domain.draw(rng) for _ in range(4000)]
    assert all(isinstance(value, int) for value in drawn)
    assert all(850 < drawn.count(value) < 1150 for value in (1, 2, 3, 4))


def test_a_conditional_setting_counts_only_where_its_condition_holds() -> None:
    content = {
        "lora_r": {"grid": [8, 16], "when": {"peft": True}},
        "peft": {"grid": [False, True]},
    }
    points = Space(content).points({}, 1, seed=0)
    assert points == [{"peft": False}, {"peft": True, "lora_r": 8}, {"peft": True, "lora_r": 16}]


def test_a_condition_may_ask_the_base_and_the_defaults() -> None:
    space = Space({"lora_r": {"grid": [8], "when": {"peft": True, "loss_form": ["additive"]}}})
    assert space.points({}, 1, 0) == [{}]
    assert space.points({"peft": True}, 1, 0) == [{"lora_r": 8}]


def test_values_are_those_that_the_setting_takes() -> None:
    (point,) = Space({"lr": {"choice": ["5e-6"]}}).points({}, 1, 0)
    assert point["lr"] == 5e-6 and math.isclose(point["lr"], 5e-6)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"orpo_alhpa": {"grid": [1]}}, "space.orpo_alhpa: unknown setting 'orpo_alhpa': did you"),
        ({"beta": {"grid": [1]}}, "here it is called orpo_alpha"),
        ({"orpo_alpha": [0, 1]}, "space.orpo_alpha: needs one of grid, choice"),
        ({"orpo_alpha": {"grid": [1], "choice": [1]}}, "needs one of grid"),
        ({"orpo_alpha": {"grid": []}}, "space.orpo_alpha.grid: must be a list"),
        ({"orpo_alpha": {"grid": [1, 1]}}, "holds 1 twice"),
        ({"orpo_alpha": {"grid": [-1]}}, "space.orpo_alpha: orpo_alpha: input should be greater"),
        ({"orpo_alpha": {"uniform": [-1, 1]}}, "space.orpo_alpha: orpo_alpha: input should be"),
        ({"lr": {"loguniform": [0, 1]}}, "low must be above 0"),
        ({"lr": {"uniform": [1, 0]}}, "low must be below high"),
        ({"lr": {"uniform": [1]}}, "must be [low, high]"),
        ({"lr": {"quniform": [1, 2]}}, "must be [low, high, step]"),
        ({"lora_r": {"randint": [1.5, 2]}}, "must be whole numbers"),
        ({"lora_r": {"uniform": [1, 2.5]}}, "lora_r"),
        ({"project_name": {"grid": ["a"]}}, "the sweep itself decides"),
        ({"engine": {"grid": ["zero4"]}}, "unknown preset 'zero4'"),
        ({"lr": {"grid": [1], "when": {"pefd": True}}}, "pefd"),
        ({"lr": {"grid": [1], "when": {"lr": 1}}}, "space.lr.when: depends on itself"),
        (
            {
                "lr": {"grid": [1], "when": {"orpo_alpha": 1}},
                "orpo_alpha": {"grid": [1], "when": {"lr": 1}},
            },
            "depends on itself",
        ),
    ],
)
def test_a_mistake_is_named(content: Any, told: str) -> None:
    with pytest.raises(UserError) as error:
        Space(content)
    assert told in str(error.value)
