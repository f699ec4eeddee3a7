"""Going on with other settings or data: what may change is said, what must not is refused."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import ORPOConfig, ORPOTrainer, UserError, load_config, train
from orpo_dist.cli import main
from orpo_dist.runs import changes as changes_module
from orpo_dist.runs.changes import check_changes, keep_step
from orpo_dist.runs.folder import read_metrics
from tests.conftest import DEMO, ROOT
from tests.launching import curve
from tests.unit.training.test_run import settings

KINDS = ("PLACES", "FREE", "CUT", "FILES", "JUDGED", "PLAN", "STATE")
SAVING: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps on the first 64 pairs, with checkpoints at 4 and 8."""
    folder = tmp_path_factory.mktemp("changes")
    lines = (DEMO / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "pairs.jsonl").write_text("".join(lines[:64]))
    train(asked(tiny_model_dir, folder / "run", folder / "pairs.jsonl"))
    return folder


def asked(model: Path, run: Path, data: Path, **changes: Any) -> ORPOConfig:
    return settings(model, run, **{"data_path": str(data), **SAVING, **changes})


@pytest.fixture
def cut(whole: Path, tmp_path: Path) -> Path:
    """What that run would have left had it died after step 4."""
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    (tmp_path / "run" / "model.safetensors").unlink()
    shutil.copy(whole / "pairs.jsonl", tmp_path)
    return tmp_path


def go_on(model: Path, cut: Path, **changes: Any) -> Any:
    again = {"resume_from_checkpoint": "auto", **changes}
    return train(asked(model, cut / "run", cut / "pairs.jsonl", **again))


def test_every_setting_is_decided_once() -> None:
    decided = [name for kind in KINDS for name in getattr(changes_module, kind)]
    assert sorted(decided) == sorted(ORPOConfig.model_fields)


def test_the_same_command_and_the_run_s_own_config_have_nothing_to_say(
    cut: Path, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = asked(tiny_model_dir, cut / "run", cut / "pairs.jsonl", resume_from_checkpoint="auto")
    own = load_config(cut / "run" / "config.yaml", {"resume_from_checkpoint": "auto"})
    own = own.replace(project_name=str(cut / "run"), data_path=str(cut / "pairs.jsonl"))
    for config in (same, own):
        assert "data_path" in check_changes(config, 1)  # it was moved, and nothing else
        assert check_changes(config, 1).count("→") == 1
    with caplog.at_level(logging.INFO, "orpo_dist"):
        train(same)
    assert sum("changed settings" in line for line in caplog.messages) == 1


def test_all_that_must_not_change_is_refused_at_once_before_anything_loads(
    cut: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orpo_dist.training.stage.load_encoder", None)
    with pytest.raises(UserError) as caught:
        go_on(
            tiny_model_dir, cut, seed=7, optimizer="adafactor", max_prompt_length=64, peft=True,
            lr=1.0, loss_form="convex", trainer_args={"adam_beta1": 0.5, "run_name": "x"},
        )  # fmt: skip
    said = str(caught.value)
    for text in (
        "seed 42 → 7", "optimizer adamw_torch → adafactor", "max_prompt_length 128 → 64",
        "peft false → true", "loss_form additive → convex", "trainer_args.adam_beta1 default → 0.5",
        "--overwrite", f"--model {cut / 'run' / 'checkpoint-4'}",
    ):  # fmt: skip
        assert text in said
    assert " lr " not in said and "run_name" not in said and "\n" not in said
    assert (cut / "run" / "checkpoint-4").is_dir()


def test_what_may_change_is_said_in_one_line_and_done(
    cut: Path, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trainer alone would keep the intervals of the checkpoint."""
    with caplog.at_level(logging.INFO, "orpo_dist"):
        go_on(
            tiny_model_dir, cut, logging_steps=2, save_steps=3, max_steps=9, lr=2e-2, orpo_alpha=0.5
        )
    (line,) = (line for line in caplog.messages if "changed settings" in line)
    for text in ("logging_steps 1 → 2", "save_steps 4 → 3", "lr 0.01 → 0.02", "max_steps 8 → 9",
                 "orpo_alpha 1.0 → 0.5"):  # fmt: skip
        assert text in line
    log = read_metrics(cut / "run" / "metrics.jsonl")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 6, 8]
    assert (cut / "run" / "checkpoint-6").is_dir() and (cut / "run" / "checkpoint-9").is_dir()


@pytest.mark.parametrize(
    "change", [{"batch_size": 2}, {"batch_size": 3}, {"batch_size": 8, "gradient_accumulation": 4}]
)
def test_another_batch_size_is_another_cut_of_the_same_steps(
    cut: Path, whole: Path, tiny_model_dir: Path, change: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.INFO, "orpo_dist"):
        handle = go_on(tiny_model_dir, cut, **change)
    assert any("a step stays 4 pairs" in line for line in caplog.messages)
    assert handle.config.global_batch_size == 4
    assert curve(cut / "run") == pytest.approx(curve(whole / "run"), rel=1e-4)


def test_a_step_that_cannot_be_made_names_what_was_set() -> None:
    with pytest.raises(UserError, match=r"steps of 16 pairs, not with global_batch_size 8"):
        keep_step(16, ORPOConfig(global_batch_size=8), "here")
    assert keep_step(16, ORPOConfig(batch_size=4), "here").global_batch_size == 16


def edit(path: Path) -> None:
    rows = path.read_text().splitlines()
    rows[10] = json.dumps({**json.loads(rows[10]), "chosen": "Something else entirely."})
    path.write_text("\n".join(rows) + "\n")


def test_edited_data_are_refused_and_moved_data_are_not(
    cut: Path, whole: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("orpo_dist.training.trainer.make_policy", None)  # no weight is loaded
        data = cut / "pairs.jsonl"
        kept = data.read_text()
        edit(data)
        with pytest.raises(UserError, match=r"train data 64 pairs → as many that are others;"):
            go_on(tiny_model_dir, cut)
        data.write_text("".join(kept.splitlines(keepends=True)[:60]))
        with pytest.raises(UserError, match=r"train data 64 pairs → 60 pairs; set them back"):
            go_on(tiny_model_dir, cut)
        data.write_text(kept)
    shutil.move(data, cut / "renamed.jsonl")
    go_on(tiny_model_dir, cut, data_path=str(cut / "renamed.jsonl"))
    assert curve(cut / "run") == pytest.approx(curve(whole / "run"), abs=1e-6)


def test_a_model_is_known_by_its_files(cut: Path, tiny_model_dir: Path) -> None:
    moved = cut / "elsewhere"
    shutil.copytree(tiny_model_dir, moved)
    resumed = asked(moved, cut / "run", cut / "pairs.jsonl", resume_from_checkpoint="auto")
    assert ", model " not in check_changes(resumed, 1)
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"cannot change: model .* → "):
        check_changes(resumed, 1)


def test_what_the_best_model_is_picked_by_cannot_change_while_one_is_kept(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    shutil.copy(DEMO / "eval.jsonl", held_out)
    config = settings(
        tiny_model_dir, tmp_path / "run", valid_data_path=str(held_out), eval_strategy="steps",
        eval_steps=2, early_stopping_patience=5,
    )  # fmt: skip
    train(config)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again = config.replace(resume_from_checkpoint="auto")
    assert check_changes(again.replace(metric_for_best_model="eval_loss"), 1) == ""  # a synonym
    for change in (
        {"metric_for_best_model": "rewards/accuracies"}, {"orpo_alpha": 0.1},
        {"valid_data_path": str(DEMO / "eval.jsonl")},
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"cannot change: {next(iter(change))}"):
            check_changes(again.replace(**change), 1)
        assert check_changes(again.replace(early_stopping_patience=None, **change), 1)
    edit(held_out)
    with pytest.raises(UserError, match="valid data 64 pairs → as many that are others"):
        train(again)
    train(again.replace(early_stopping_patience=None))


def test_stages_are_compared_one_by_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [{"max_steps": 2}, {"max_steps": 4, "seed": 1, "save_steps": 2}]
    config = settings(tiny_model_dir, tmp_path / "run", save_strategy="steps", save_steps=2)
    config = config.replace(stages=stages, max_steps=None)
    train(config)
    shutil.rmtree(tmp_path / "run" / "stage-2" / "checkpoint-4")
    (tmp_path / "run" / "stage-2" / "stage.json").unlink(missing_ok=True)
    again = config.replace(resume_from_checkpoint="auto")

    def changed(first: dict[str, Any], second: dict[str, Any], **more: Any) -> str:
        both = [{**stages[0], **first}, {**stages[1], **second}]
        return check_changes(again.replace(stages=both, **more), 1)

    assert changed({}, {}) == ""
    assert "; stage 1 is done and keeps its lr" in changed({}, {}, lr=1e-4)
    assert changed({}, {"lr": 1e-4}).endswith("lr 0.01 → 0.0001")
    with pytest.raises(UserError, match=r"cannot change: seed 1 → 2;"):
        changed({}, {"seed": 2})
    with pytest.raises(UserError, match=r"cannot change: seed 42 → 3 in stage 1, which is done;"):
        changed({"seed": 3}, {})
    assert check_changes(again.replace(stages=[*stages, {"max_steps": 1}]), 1) == ""


def test_launch_refuses_before_a_process_starts_and_without_torch(
    cut: Path, tiny_model_dir: Path
) -> None:
    words = [
        "launch", "ddp", "--num-processes", "2", "--dry-run", "--", "train", "--model",
        str(tiny_model_dir), "--data-path", str(cut / "pairs.jsonl"), "--project-name",
        str(cut / "run"), "--resume-from-checkpoint", "auto", "--seed", "3",
    ]  # fmt: skip
    code = (
        "import sys; from orpo_dist.cli import main; found = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(found)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2 and "cannot change: seed 42 → 3" in done.stderr, done.stderr
    assert main([*words[:-2], "--max-steps", "9"]) == 0


def test_a_trainer_from_python_compares_too(
    tiny_model_dir: Path, tmp_path: Path, demo_rows: list[dict[str, str]]
) -> None:
    def trainer(rows: int = 40, **changes: Any) -> ORPOTrainer:
        config = settings(tiny_model_dir, tmp_path, **SAVING).replace(**changes)
        return ORPOTrainer(str(tiny_model_dir), config, demo_rows[:rows])

    trainer().train()
    checkpoint = str(tmp_path / "checkpoint-4")
    for changed, words in (
        ({"seed": 1}, "seed 42 → 1"), ({"batch_size": 2}, "steps of 4 pairs, not of 2"),
        ({"rows": 30}, "train data 40 pairs → 30 pairs"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            trainer(**changed).train(resume_from_checkpoint=checkpoint)
    trainer(lr=1e-3).train(resume_from_checkpoint=checkpoint)
