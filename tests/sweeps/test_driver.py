"""What the driver decides before anything runs, and how trials are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from orpo_dist.cli import main
from orpo_dist.sweeps.driver import forget_failures, open_project, settle_records, trial_name
from orpo_dist.sweeps.files import load_sweep
from orpo_dist.sweeps.records import Trial, read_trials
from orpo_dist.sweeps.worker import FAILURE
from orpo_dist.types import UserError

SPACE = {"orpo_alpha": {"grid": [0, 1]}}


def test_a_sweep_is_opened_once_and_then_resumed(tmp_path: Path) -> None:
    project = tmp_path / "s"
    sweep = load_sweep({"space": SPACE, "base": {"lr": 1e-5}})
    assert open_project(project, sweep, resume=False) is False
    assert open_project(project, sweep, resume=False) is False  # nothing has run: nothing to lose
    Trial("000", {}).save(project)
    with pytest.raises(UserError, match="already holds a sweep"):
        open_project(project, sweep, resume=False)
    assert open_project(project, sweep, resume=True) is False  # Ray had written nothing yet
    (project / "ray").mkdir()
    (project / "ray" / "tuner.pkl").touch()
    assert open_project(project, sweep, resume=True) is True


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


def test_what_does_not_change_results_may_change(tmp_path: Path) -> None:
    sweep = load_sweep({"space": SPACE})
    open_project(tmp_path / "s", sweep, resume=False)
    Trial("000", {}).save(tmp_path / "s")
    open_project(tmp_path / "s", load_sweep({"space": SPACE, "time_budget": "2h"}), resume=True)


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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep", "smok"], "sweep 'smok': no such file; did you mean smoke?"),
        (["sweep", "smoke", "--stage", "0"], "--stage 0: stages count from 1"),
        (["sweep", "smoke", "--retry-failed"], "--retry-failed needs --resume"),
        (["sweep", "smoke", "--overwrite"], "unknown flag '--overwrite'"),
        (["sweep", "alpha"], "model is missing"),
        (["sweep", "smoke", "--engine", "zero7"], "unknown preset 'zero7'"),
    ],
)
def test_mistakes_end_with_one_sentence_and_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
