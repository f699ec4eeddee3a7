"""What must not be lost: finished runs, their settings, and the model at the very end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from orpo_dist import ORPOTrainer, UserError, load, load_config, train
from orpo_dist.runs.folder import read_metrics
from orpo_dist.runs.manifest import facts_of, files_in, fingerprints, seal
from tests.conftest import DEMO
from tests.unit.training.test_run import settings


def test_weights_that_do_not_fill_the_model_are_refused(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lack 9 tensors .* model\.layers\.2"):
        train(settings(broken, tmp_path / "run"))


def test_a_failed_attempt_does_not_block_the_next(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        train(settings(tiny_model_dir, tmp_path, data_path="missing.jsonl"))
    train(settings(tiny_model_dir, tmp_path))


def test_a_foreign_checkpoint_does_not_replace_a_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(settings(tiny_model_dir, tmp_path / name))
    before = (tmp_path / "b" / "model.safetensors").read_bytes()
    foreign = str(tmp_path / "a" / "checkpoint-4")
    with pytest.raises(UserError, match="already holds a run"):
        train(settings(tiny_model_dir, tmp_path / "b", resume_from_checkpoint=foreign))
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == before
    train(settings(tiny_model_dir, tmp_path / "c", resume_from_checkpoint=foreign, max_steps=6))
    assert [e["step"] for e in read_metrics(tmp_path / "c" / "metrics.jsonl")] == [5, 6]


def test_a_checkpoint_that_does_not_fit_is_one_sentence(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    train(settings(tiny_model_dir, tmp_path / "a", peft=True, lora_r=4))
    checkpoint = tmp_path / "a" / "checkpoint-4"
    foreign = str(checkpoint)
    for says in ("cannot change: ", "does not fit here"):
        for changes in ({"peft": True, "lora_r": 8}, {}):
            config = settings(tiny_model_dir, tmp_path / "b", **changes)
            with pytest.raises(UserError, match=says) as caught:
                train(config.replace(resume_from_checkpoint=foreign, overwrite=True))
            assert "\n" not in str(caught.value)
        # Sealed again without what tells of the settings: the weights themselves are looked at.
        (checkpoint / "settings.json").unlink(missing_ok=True)
        seal(checkpoint, fingerprints(checkpoint, files_in(checkpoint)), facts_of(checkpoint))


def test_the_saved_config_does_not_replay_an_overwrite(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    train(settings(tiny_model_dir, tmp_path, overwrite=True))
    config = load_config(tmp_path / "config.yaml")
    assert not config.overwrite
    with pytest.raises(UserError, match="already holds a run"):
        train(config)


def test_a_checkpoint_is_used_with_the_settings_of_its_run(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    train(settings(tiny_model_dir, tmp_path, chat_template="none", max_prompt_length=64))
    handle = load(tmp_path / "checkpoint-4")
    assert handle.config.max_prompt_length == 64
    assert handle.score("Hello", "there") == pytest.approx(load(tmp_path).score("Hello", "there"))


def test_the_model_is_saved_before_the_last_evaluation(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ORPOTrainer, "evaluate", interrupted)
    data = {"valid_data_path": str(DEMO / "eval.jsonl"), "eval_strategy": "no"}
    with pytest.raises(KeyboardInterrupt):
        train(settings(tiny_model_dir, tmp_path, save_strategy="no", **data))
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"


def test_prompts_over_the_context_are_one_sentence(tiny_model_dir: Path) -> None:
    handle = load(tiny_model_dir)
    with pytest.raises(UserError, match="context of 512"):
        handle.generate("word " * 600)
    with pytest.raises(UserError, match="context of 512"):
        handle.score("Hi", "word " * 600)


def test_files_that_are_no_run_are_never_overwritten(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    before = (model / "model.safetensors").read_bytes()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.yaml").write_text("# my notes\nlr: 1")
    for folder, name in ((model, "model.safetensors"), (mine, "config.yaml")):
        with pytest.raises(UserError, match=f"its {name} would be overwritten"):
            train(settings(tiny_model_dir, folder, overwrite=True))
    assert (model / "model.safetensors").read_bytes() == before
    assert (mine / "config.yaml").read_text().startswith("# my notes")


def test_replacing_a_failed_attempt_leaves_other_files_alone(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "tokenizer-notes.txt").write_text("mine")
    with pytest.raises(UserError, match="does not exist"):
        train(settings(tiny_model_dir, tmp_path, data_path="missing.jsonl"))
    train(settings(tiny_model_dir, tmp_path))
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "tokenizer-notes.txt").read_text() == "mine"
