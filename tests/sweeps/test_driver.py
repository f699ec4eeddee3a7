"""What the driver decides before anything runs, and how trials are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orpo_dist.base.types import UserError
from orpo_dist.cli import main
from orpo_dist.sweeps.protocol import FAILURE, Trial, read_trials
from orpo_dist.sweeps.running import driver, tuning
from orpo_dist.sweeps.running.driver import open_project, sweep
from orpo_dist.sweeps.running.records import forget_failures, settle_records
from orpo_dist.sweeps.running.tuner import trial_name
from orpo_dist.sweeps.search import find_best_alpha
from orpo_dist.sweeps.searched.files import load_sweep

SPACE = {"orpo_alpha": {"grid": [0, 1]}}


def test_a_sweep_is_opened_once_and_then_resumed(tmp_path: Path) -> None:
    project = tmp_path / "s"
    made = load_sweep({"space": SPACE, "base": {"lr": 1e-5}})
    assert open_project(project, made, resume=False) is False
    assert open_project(project, made, resume=False) is False  # nothing has run: nothing to lose
    Trial("000", {}).save(project)
    with pytest.raises(UserError, match="already holds a sweep"):
        open_project(project, made, resume=False)
    assert open_project(project, made, resume=True) is False  # Ray had written nothing yet
    (project / "ray").mkdir()
    (project / "ray" / "tuner.pkl").touch()
    assert open_project(project, made, resume=True) is True


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"space": SPACE, "base": {"lr": 1e-4}}, "another lr"),
        ({"space": {"orpo_alpha": {"grid": [0, 2]}}, "base": {"lr": 1e-5}}, "another space"),
        (
            {"space": SPACE, "base": {"lr": 1e-5}, "workers_per_trial": 2},
            "another workers_per_trial",
        ),
    ],
)
def test_another_sweep_is_not_mixed_in(
    tmp_path: Path, content: dict[str, object], told: str
) -> None:
    open_project(tmp_path / "s", load_sweep({"space": SPACE, "base": {"lr": 1e-5}}), resume=False)
    Trial("000", {}).save(tmp_path / "s")
    with pytest.raises(UserError, match=told):
        open_project(tmp_path / "s", load_sweep(content), resume=True)


def opened(project: Path, *trials: Trial, **settings: object) -> Path:
    """A sweep of which Ray has kept something."""
    open_project(project, load_sweep({"space": SPACE, **settings}), resume=False)
    for trial in trials:
        trial.save(project)
    (project / "ray").mkdir()
    (project / "ray" / "tuner.pkl").touch()
    return project


def test_limits_may_change_and_ray_begins_anew(tmp_path: Path) -> None:
    project = opened(tmp_path / "s", Trial("000", {}))
    longer = load_sweep({"space": SPACE, "time_budget": "2h"})
    assert open_project(project, longer, resume=True) is False
    assert not (project / "ray").exists() and load_sweep(project / "sweep.yaml") == longer


def test_what_a_time_budget_has_interrupted_goes_on(tmp_path: Path) -> None:
    late = Trial("000", {}, "running")
    project = opened(tmp_path / "s", late, Trial("001", {}, "finished"), time_budget=60)
    settle_records(project, 60)
    assert {t.name: (t.status, t.why) for t in read_trials(project)} == {
        "000": ("interrupted", "time budget of 60 s"), "001": ("finished", ""),
    }  # fmt: skip
    same = load_sweep({"space": SPACE, "time_budget": 60})
    assert open_project(project, same, resume=True) is False


def test_a_searcher_goes_on_with_its_limits_or_not_at_all(tmp_path: Path) -> None:
    proposed = {"space": {"lr": {"uniform": [1e-6, 1e-4]}}, "searcher": "optuna"}
    project = opened(tmp_path / "s", Trial("a", {}), **proposed)
    before = (project / "sweep.yaml").read_text()
    with pytest.raises(UserError, match="searcher optuna goes on with the max_failures that it"):
        open_project(project, load_sweep({**proposed, "max_failures": 9}), resume=True)
    assert (project / "sweep.yaml").read_text() == before
    assert open_project(project, load_sweep(proposed), resume=True) is True


def test_another_space_before_the_first_trial_is_a_new_sweep(tmp_path: Path) -> None:
    project = opened(tmp_path / "s")
    other = load_sweep({"space": {"orpo_alpha": {"grid": [0.3, 0.6]}}})
    assert open_project(project, other, resume=True) is False
    assert not (project / "ray").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no sweep"):
        open_project(tmp_path, load_sweep({"space": SPACE}), resume=True)


def test_names_say_what_a_trial_is_and_fit_a_file_system() -> None:
    assert trial_name("003", {"orpo_alpha": 0.5, "lr": 1e-5, "seed": 43}) == (
        "003-orpo_alpha=0.5-lr=1e-05-seed=43"
    )
    assert trial_name("000", {"model": "org/name ü"}) == "000-model=org_name_ü"
    assert len(trial_name("000", {"chat_template": "x" * 500})) == 100


def test_trials_that_nobody_ended_count_as_interrupted(tmp_path: Path) -> None:
    for status in ("running", "waiting", "finished", "stopped", "failed"):
        Trial(status, {}, status).save(tmp_path)
    settle_records(tmp_path)
    assert {t.name: t.status for t in read_trials(tmp_path)} == {
        "running": "interrupted", "waiting": "interrupted", "finished": "finished",
        "stopped": "stopped", "failed": "failed",
    }  # fmt: skip


def test_a_failed_trial_may_be_tried_again(tmp_path: Path) -> None:
    Trial("a", {}, "failed", "out of memory").save(tmp_path)
    (tmp_path / "trials" / "a" / FAILURE).write_text('{"final": true, "reason": "x"}')
    forget_failures(tmp_path)
    assert read_trials(tmp_path)[0].status == "waiting"
    assert not (tmp_path / "trials" / "a" / FAILURE).exists()


def test_a_dry_run_prints_a_sweep_that_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "alpha", "--dry-run", "--model", "m", "--lr", "2e-5", "--repeats", "1",
             "--keep-models", "2", "--metric", "perplexity"]  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    again = load_sweep(tmp_path / "again.yaml")
    assert (again.base["lr"], again.base["model"], again.keep_models) == (2e-5, "m", 2)
    assert list(again.metrics.items()) == [("perplexity", "min")]
    assert printed.count("# orpo_alpha=") == 7


@pytest.mark.parametrize("flags", [["--dry-run"], ["--model", "m"]])
def test_every_value_of_the_space_is_checked_as_train_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    """All wrong names at once, also those that no trial would draw; before model and data."""
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({
        "base": {"log": "nowhere"},
        "space": {
            "optimizer": {"choice": ["adamw_torch", "adam_wtorch", "adamw_troch"]},
            "scheduler": {"choice": ["cosine", "cosin"], "when": {"peft": True}},
            "peft": {"choice": [True, False]},
            "sequence_parallel": {"choice": [1, 3]},
            "lr": {"loguniform": [1e-6, 1e-4]},
        },
        "num_samples": 1, "workers_per_trial": 2, "engine": "ddp",
    }))  # fmt: skip
    assert main(["sweep", str(file), *flags, "--project-name", str(tmp_path / "p")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    for told in ("base: log 'nowhere'", "space: optimizer 'adam_wtorch': is not one of",
                 "space: optimizer 'adamw_troch'", "space: scheduler 'cosin'",
                 "space: sequence_parallel 3: 2 processes cannot be cut"):  # fmt: skip
        assert told in said.err
    assert "'adamw_torch'" not in said.err and "'cosine'" not in said.err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep", "smok"], "sweep 'smok': no such file; did you mean smoke?"),
        (["sweep", "smoke", "--rounds", "0"], "--rounds 0: rounds count from 1"),
        (["sweep", "smoke", "--retry-failed"], "--retry-failed needs --resume"),
        (["sweep", "smoke", "--overwrite"], "unknown flag '--overwrite'"),
        (["sweep", "alpha"], "model is missing"),
        (["sweep", "smoke", "--engine", "zero7"], "unknown preset 'zero7'"),
        (["sweep", "smoke", "--scheduler", "asha"], "scheduler 'asha': is not one of linear"),
        (["sweep", "alpha", "--orpo-alpha", "0.3"], "--orpo-alpha: this sweep searches orpo_alpha"),
    ],
)
def test_mistakes_end_with_one_sentence_and_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_scheduler_and_searcher_are_made_once_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    made: list[str] = []
    ran: list[object] = []
    for name in ("scheduler", "searcher"):
        monkeypatch.setattr(tuning, name, lambda sweep, name=name: made.append(name) or name)
    for name in ("connect", "prepare_shared", "refuse_unfit"):
        monkeypatch.setattr(driver, name, lambda *arguments: False)
    monkeypatch.setattr(driver, "_run", lambda config, tuned, *more: ran.append(tuned))
    driver.sweep({"space": SPACE}, str(tmp_path / "s"))
    assert made == ["scheduler", "searcher"]
    assert [(tuned.scheduler, tuned.searcher) for tuned in ran] == [("scheduler", "searcher")]


@pytest.mark.parametrize("ask", [sweep, find_best_alpha])
def test_the_old_word_for_rounds_is_answered(ask: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="stages 2: finer sweeps are now called rounds: pass rou"):
        ask({"model": "m"}, stages=2)
