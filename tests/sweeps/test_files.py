"""Sweep files: all that are shipped, and what is told of a mistake in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.sweeps.running.shared import refuse_unfit
from orpo_dist.sweeps.searched.files import FOLDER, dump_sweep, load_sweep, shipped
from orpo_dist.sweeps.searched.metrics import METRICS
from tests.conftest import DEMO, ROOT

SPACE = {"orpo_alpha": {"grid": [0, 1]}}


def test_what_is_shipped_and_what_lies_at_the_top_are_the_same() -> None:
    assert shipped() == ["alpha", "alpha_lr", "ensemble", "lr_pbt", "smoke"]
    for name in shipped():
        assert (ROOT / "sweeps" / f"{name}.yaml").resolve() == FOLDER.resolve() / f"{name}.yaml"


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_sweep_loads_and_can_run(name: str) -> None:
    data = {"data_path": [str(DEMO / "train.jsonl")], "valid_data_path": [str(DEMO / "eval.jsonl")]}
    sweep = load_sweep(name, {} if name == "smoke" else {"model": "m", **data})
    refuse_unfit(sweep)
    points = sweep.points
    assert (
        len(points) == {"alpha": 21, "alpha_lr": 40, "ensemble": 8, "lr_pbt": 8, "smoke": 4}[name]
    )
    for point in points:
        config = sweep.run_config(point, "trial")
        assert config.save_strategy == config.eval_strategy != "no"
        assert config.resume_from_checkpoint == "auto"
    by_path = load_sweep(ROOT / "sweeps" / f"{name}.yaml")
    assert by_path.space == sweep.space


def test_the_alphas_of_the_shipped_sweep() -> None:
    sweep = load_sweep("alpha")
    alphas = [point["orpo_alpha"] for point in sweep.points]
    assert sorted(set(alphas)) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    assert {point["seed"] for point in sweep.points} == {42, 43, 44}


def test_the_smoke_sweep_finds_its_model_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = load_sweep(ROOT / "sweeps" / "smoke.yaml").base
    assert Path(base["model"], "config.json").is_file()
    assert Path(base["valid_data_path"][0]).is_file()


def test_a_sweep_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    sweep = load_sweep("alpha_lr", {"lr": 1e-5}, {"repeats": 2})
    path = tmp_path / "sweep.yaml"
    path.write_text(dump_sweep(sweep))
    assert load_sweep(path) == sweep
    assert load_sweep(path).points == sweep.points


def test_paths_are_absolute_and_a_template_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").touch()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "beside.jsonl").touch()
    (tmp_path / "sweep" / "s.yaml").write_text("space: {orpo_alpha: {grid: [0, 1]}}")
    base = {"model": "org/name", "data_path": ["here.jsonl", "beside.jsonl", "gone.jsonl"],
            "chat_template": "{{ messages }}" + "x" * 300}  # fmt: skip
    found = load_sweep("sweep/s.yaml", base).base
    assert found["data_path"] == [
        str(tmp_path / "here.jsonl"), str(tmp_path / "sweep" / "beside.jsonl"), "gone.jsonl",
    ]  # fmt: skip
    assert (found["model"], found["chat_template"]) == ("org/name", base["chat_template"])


def test_every_setting_that_makes_metrics_incomparable_exists() -> None:
    for metric in METRICS.values():
        assert set(metric.incomparable) <= set(ORPOConfig.model_fields)


def test_base_may_be_a_file_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lr: 3.0e-6\n")
    (tmp_path / "my.yaml").write_text("base: run.yaml\nspace: {orpo_alpha: {grid: [0, 1]}}\n")
    assert load_sweep(tmp_path / "my.yaml").base == {"lr": 3e-6}


def test_a_whole_trial_is_made_of_base_and_point() -> None:
    sweep = load_sweep(
        {"base": {"lr": 1e-6, "orpo_alpha": 9, "seed": 5}, "space": SPACE, "repeats": 2}
    )
    settings = sweep.settings_of({"settings": sweep.points[1]})
    config = sweep.run_config(settings, "folder")
    assert (config.lr, config.orpo_alpha, config.seed) == (1e-6, 0.0, 6)
    assert config.project_name == "folder"


def test_the_engine_of_a_trial() -> None:
    sweep = load_sweep({"space": {"engine": {"grid": ["ddp", "zero2"]}}, "workers_per_trial": 2})
    assert [sweep.engine_of(point) for point in sweep.points] == ["ddp", "zero2"]
    assert load_sweep({"space": SPACE}).engine_of({}) == "single"
    assert load_sweep({"space": SPACE, "workers_per_trial": 2}).engine_of({}) == "ddp"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "space is missing"),
        ({"space": {}}, "nothing to compare"),
        (
            {"space": SPACE, "sheduler": "asha"},
            "unknown setting 'sheduler': did you mean scheduler?",
        ),
        ({"space": SPACE, "lr": 1}, "'lr' is a setting of the runs: put it under base"),
        ({"space": SPACE, "base": {"learning_rate": 1}}, "here it is called lr"),
        ({"space": SPACE, "base": {"lr": -1}}, "base: lr: input should be greater than 0"),
        (
            {"space": {"lora_r": {"grid": [4, 8]}}, "scheduler": "pbt"},
            "space.lora_r: cannot change while a trial trains, as scheduler pbt",
        ),
        (
            {
                "space": {"lr": {"uniform": [1e-6, 1e-5]}},
                "searcher": "optuna",
                "repeats": 2,
                "metric": ["accuracy", "perplexity"],
            },
            "several metrics cannot be averaged over repeats",
        ),
        (
            {"space": {"valid_data_path": {"grid": [["a"], ["b"]]}}},
            "metric accuracy: depends on valid_data_path, which is in the space, so that its "
            "values cannot be compared between trials; take it out of the space",
        ),
        (
            {"space": {"orpo_alpha_schedule": {"grid": ["constant", "linear"]}}, "metric": "loss"},
            "metric loss: depends on orpo_alpha_schedule",
        ),
        ({"space": SPACE, "scheduler": "ash"}, "scheduler 'ash': did you mean asha?"),
        ({"space": SPACE, "searcher": "optima"}, "searcher 'optima': did you mean optuna?"),
        (
            {"space": SPACE, "metric": "acuracy"},
            "metric 'acuracy': is not an evaluation metric; did",
        ),
        ({"space": SPACE, "metric": "loss"}, "metric loss: depends on orpo_alpha"),
        ({"space": SPACE, "metric": ["accuracy", "perplexity"]}, "need searcher optuna"),
        ({"space": SPACE, "mode": ["max", "min"]}, "mode: 2 given for 1 metrics"),
        ({"space": SPACE, "searcher": "optuna"}, "walks no grid: use choice"),
        ({"space": SPACE, "scheduler": "bohb"}, "belong together"),
        ({"space": SPACE, "engine": "zero9"}, "unknown preset 'zero9'"),
        (
            {"space": SPACE, "engine": "single", "workers_per_trial": 2},
            "engine single is one process",
        ),
        ({"space": {"seed": {"grid": [1, 2]}}, "repeats": 2}, "repeats and space.seed"),
        ({"space": SPACE, "workers_per_trial": 0}, "workers_per_trial: input should be greater"),
        ({"space": SPACE, "keep_models": 0}, "keep_models: must be all, or a number from 1"),
        ({"space": SPACE, "base": {"eval_strategy": "no"}}, "trials are compared by their eval"),
        (
            {"space": {"orpo_alpha": {"grid": [0.5, 1.5]}}, "base": {"loss_form": "convex"}},
            "orpo_alpha is 1.5, but loss_form convex needs",
        ),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(content: Any, told: str) -> None:
    with pytest.raises(UserError) as error:
        load_sweep(content)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_time_budgets_take_units() -> None:
    for text, seconds in (("90s", 90), ("2h", 7200), ("1.5m", 90), (45, 45)):
        assert load_sweep({"space": SPACE, "time_budget": text}).time_budget == seconds


def test_a_sweep_that_is_not_there() -> None:
    with pytest.raises(UserError, match="did you mean alpha_lr"):
        load_sweep("alphalr")


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ({}, "model is missing"),
        ({"model": "m"}, "data_path is missing"),
        ({"model": "m", "data_path": ["d"]}, "compares trials by held-out data"),
        ({"model": "m", "data_path": ["d"], "stages": [{}, {}]}, "sweep one stage at a time"),
    ],
)
def test_what_every_trial_needs(base: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        refuse_unfit(load_sweep({"space": SPACE, "base": base}))
