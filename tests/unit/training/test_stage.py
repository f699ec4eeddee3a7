"""Stages: each goes on from the last one's weights; one folder, one curve, resumable anywhere."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerState

from orpo_dist import ORPOConfig, UserError, cli, load, train
from orpo_dist.cli import main
from orpo_dist.config import build_config, dump_config, load_config
from orpo_dist.runs.folder import RunFolder, newest_checkpoint, read_json, read_metrics, saved_step
from orpo_dist.training.callbacks import MetricsFile
from tests.launching import training
from tests.unit.training.test_run import settings

Rows = list[dict[str, Any]]
SAVES = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
STAGES: list[dict[str, Any]] = [
    {"max_steps": 3, "orpo_alpha": 0.0},
    {"max_steps": 5, "orpo_alpha": 0.8, "orpo_alpha_schedule": "ramp", "lr": 3e-3, "seed": 7},
    {"max_steps": 2, "curriculum": "length", "batch_size": 2},
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-6, rtol=1e-5)


def curve(folder: Path) -> dict[int, float]:
    """The loss by step; no step is there twice."""
    log = [entry for entry in read_metrics(folder / "metrics.jsonl") if "loss/orpo" in entry]
    assert len({entry["step"] for entry in log}) == len(log)
    return {entry["step"]: entry["loss/orpo"] for entry in log}


@pytest.fixture(scope="module", params=[False, True], ids=["full", "adapter"])
def staged(
    request: pytest.FixtureRequest,
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ORPOConfig, Path]:
    """A run of three stages that nobody interrupted."""
    folder = tmp_path_factory.mktemp("staged") / "run"
    config = settings(tiny_model_dir, folder, stages=STAGES, peft=request.param, **SAVES)
    train(config)
    return config, folder


def test_one_curve_with_the_settings_of_each_stage(staged: tuple[ORPOConfig, Path]) -> None:
    _, folder = staged
    log = read_metrics(folder / "metrics.jsonl")
    assert [entry["step"] for entry in log] == list(range(1, 11))
    assert [entry["stage"] for entry in log] == [1] * 3 + [2] * 5 + [3] * 2
    ramp = [0.8 * min(1, 2 * step / 5) for step in range(5)]
    assert [entry["orpo_alpha"] for entry in log] == [0.0] * 3 + ramp + [1.0, 1.0]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert sorted(e.step for e in events.Scalars("train/loss/orpo")) == list(range(1, 11))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "stage 2: train" in page
    record = read_json(folder / "run.json")
    assert record["status"] == "completed"
    assert [stage["steps"] for stage in RunFolder(folder).finished_stages()] == [3, 5]


def test_stages_equal_runs_made_one_after_the_other_by_hand(
    staged: tuple[ORPOConfig, Path], tmp_path: Path
) -> None:
    """Full training: a run per stage, each with the folder of the last one as its model."""
    config, folder = staged
    if config.peft:
        pytest.skip("an adapter is no --model; its stages are compared in the next test")
    model = config.model
    curves = []
    for number, stage in enumerate(STAGES, start=1):
        alone = tmp_path / str(number)
        values = {**config.model_dump(), **stage, "stages": None, "model": model}
        train(ORPOConfig(**{**values, "project_name": str(alone)}))
        curves += curve(alone).values()
        model = str(alone)
    assert [*curve(folder).values()] == pytest.approx(curves, abs=1e-6)
    assert_same(folder, tmp_path / "3")


def test_a_stage_goes_on_with_the_adapter_of_the_last(staged: tuple[ORPOConfig, Path]) -> None:
    """Were the adapter new, or frozen, its weights and the loss would jump back or stand still."""
    config, folder = staged
    if not config.peft:
        pytest.skip("about adapters")
    ends = [weights(f) for f in (folder / "stage-1", folder / "stage-2", folder)]
    assert ends[0].keys() == ends[1].keys() == ends[2].keys()
    for before, after in itertools.pairwise(ends):
        assert all(not torch.equal(before[name], after[name]) for name in before)
    assert any(tensor.abs().max() > 0 for name, tensor in ends[0].items() if "lora_B" in name)
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == config.model
    assert not any((folder / f"stage-{n}" / "model.safetensors").exists() for n in (1, 2, 3))


@pytest.mark.parametrize(
    "lost",
    [
        ["stage-1/checkpoint-3", "stage-1/stage.json", "stage-2", "stage-3"],  # within stage 1
        ["stage-2", "stage-3"],  # between two stages
        ["stage-2/stage.json", "stage-2/checkpoint-4", "stage-2/checkpoint-5", "stage-3"],
        ["stage-2/stage.json", "stage-3"],  # stage 2 trained, but not saved
        ["stage-3/checkpoint-2"],  # before the first checkpoint of stage 3
    ],
)
def test_resumed_anywhere_it_equals_the_uninterrupted_run(
    staged: tuple[ORPOConfig, Path], tmp_path: Path, lost: list[str]
) -> None:
    config, whole = staged
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in [*lost, *(file.name for file in whole.glob("*.safetensors"))]:
        path = cut / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed = config.replace(project_name=str(cut), resume_from_checkpoint="auto")
    train(resumed)
    assert curve(cut) == pytest.approx(curve(whole), abs=1e-6)
    assert_same(cut, whole)


def test_what_is_saved_is_counted_over_all_stages(
    staged: tuple[ORPOConfig, Path], tmp_path: Path
) -> None:
    """What a job script looks at to see whether there is progress."""
    cut = tmp_path / "cut"
    shutil.copytree(staged[1], cut)
    folder = RunFolder(cut)
    assert saved_step(folder) == 10
    (cut / "stage-3" / "checkpoint-2" / "trainer_state.json").unlink()
    assert saved_step(folder) == 8
    shutil.rmtree(cut / "stage-3")
    (cut / "stage-2" / "stage.json").unlink()
    assert saved_step(folder) == 8  # by its last checkpoint
    assert newest_checkpoint(cut) == cut / "stage-2" / "checkpoint-5"
    shutil.rmtree(cut / "stage-2")
    assert saved_step(folder) == 3


def test_going_back_to_a_checkpoint_forgets_what_came_after(
    staged: tuple[ORPOConfig, Path], tmp_path: Path
) -> None:
    config, whole = staged
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    marker = cut / "stage-3" / "old"
    marker.touch()
    back = str(cut / "stage-2" / "checkpoint-2")
    train(config.replace(project_name=str(cut), resume_from_checkpoint=back))
    assert curve(cut) == pytest.approx(curve(whole), abs=1e-6)
    assert not marker.exists()


def test_a_finished_run_is_not_begun_again(
    staged: tuple[ORPOConfig, Path], tmp_path: Path, tiny_model_dir: Path
) -> None:
    config, whole = staged
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    config = config.replace(project_name=str(cut))
    with pytest.raises(UserError, match="already holds a run"):
        train(config)
    with pytest.raises(UserError, match=r"written in stage 3.* have 2 stages"):
        train(config.replace(stages=STAGES[:2], resume_from_checkpoint="auto"))
    with pytest.raises(UserError, match=r"written in stage 3.* have no stages"):
        train(config.replace(stages=None, resume_from_checkpoint="auto"))
    train(config.replace(overwrite=True, stages=STAGES[:1]))
    assert not (cut / "stage-2").exists()
    assert len(curve(cut)) == 3


def test_the_folder_of_a_staged_run_is_read_back(staged: tuple[ORPOConfig, Path]) -> None:
    config, folder = staged
    found = load_config(folder / "config.yaml")
    assert found.stages == STAGES
    assert found.project_name == config.project_name
    handle = load(folder)
    assert handle.score("Hello", "there") < 0
    stage = load(folder / "stage-1")
    assert stage.score("Hello", "there") != handle.score("Hello", "there")


def test_stages_with_data_of_their_own_and_held_out(
    tiny_model_dir: Path, demo_rows: Rows, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [str(write_rows(demo_rows[at : at + 8], f"{at}.jsonl")) for at in (0, 8, 16)]
    folder = tmp_path / "run"
    handle = train(
        settings(
            tiny_model_dir, folder, data_path=[], max_steps=None, epochs=1, log="none",
            valid_data_path=paths[2], save_strategy="no",
            stages=[{"data_path": paths[0]}, {"data_path": paths[:2], "epochs": 2}],
        )
    )  # fmt: skip
    log = read_metrics(folder / "metrics.jsonl")
    assert [e["step"] for e in log if "eval/loss" in e] == [2, 6, 10]
    assert handle.metrics["eval/loss"] == log[-1]["eval/loss"]
    reports = read_json(folder / "data_report.json")
    assert reports["stage 1: train"]["pairs"] == 8
    assert reports["stage 2: train"]["pairs"] == 16
    assert RunFolder(folder).finished_stages()[0]["metrics"]["eval/loss"] == log[2]["eval/loss"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stages": [{}, {"lr": -1}]}, "stage 2: lr: input should be greater than 0"),
        ({"stages": [{"learning_rate": 1}]}, "stage 1: unknown setting.* called lr"),
        ({"stages": [{"peft": True}]}, "stage 1: peft is one for the whole run"),
        ({"stages": [{"stages": []}]}, "stage 1: stages is one for the whole run"),
        ({"stages": [{"data_temperature": 2}], "data_path": ["a"]}, "stage 1: data_temperature"),
        ({"stages": ["sft"]}, "stages"),
    ],
)
def test_mistakes_name_the_stage(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build_config(values)
    assert "\n" not in str(caught.value)


def test_a_stage_without_data_is_told_before_the_first_one_trains(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="data_path is missing"):
        train(settings(tiny_model_dir, tmp_path, stages=[{}, {"data_path": []}]))
    assert not (tmp_path / "stage-1").exists()


def test_stages_in_yaml_and_as_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("lr: 1.0e-5\nstages:\n- {orpo_alpha: 0}\n- epochs: 1\n  lr: 1.0e-6\n")
    config = load_config(path)
    assert [stage.lr for stage in config.stage_configs()] == [1e-5, 1e-6]
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert cli.main(["train", "--dry-run", "--stages", "[{lr: 1.0}, {}"]) == 2
    assert "is not a YAML or JSON list of mappings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "first_step", "done", "kept"),
    [
        (1, 0, 0, []),
        (1, 0, 1, [0, 1]),
        (2, 2, 0, [0, 1, 2]),  # what a stage logs before its first step is its own
        (2, 2, 1, [0, 1, 2, 2, 3]),
        (3, 4, 0, [0, 1, 2, 2, 3, 4]),
    ],
)
def test_going_on_drops_the_lines_that_come_again(
    tmp_path: Path, stage: int, first_step: int, done: int, kept: list[int]
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [(0, 1), (1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (4, 3), (5, 3)]  # (step, stage)
    path.write_text("".join(json.dumps({"step": a, "stage": b}) + "\n" for a, b in lines))
    state = TrainerState(global_step=done, is_world_process_zero=True)
    MetricsFile(path, stage, first_step).on_train_begin(None, state, None)
    assert [line["step"] for line in read_metrics(path)] == kept


@pytest.mark.parametrize("name", ["2", "stage-2"])
def test_a_run_may_be_called_like_a_stage(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """An array of jobs calls its runs 1, 2, 3."""
    words = training(tiny_model_dir, tmp_path / name, "--save-strategy", "steps", "--save-steps")
    assert main([*words, "2", "--max-steps", "2"]) == 0
    (tmp_path / name / "model.safetensors").unlink()
    assert main([*words, "2", "--max-steps", "4", "--resume-from-checkpoint", "auto"]) == 0
    log = read_metrics(tmp_path / name / "metrics.jsonl")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
