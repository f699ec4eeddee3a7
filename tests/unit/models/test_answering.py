"""What a saved model does in plain transformers: it answers, and stops, as it was trained to."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from orpo_dist import ORPOConfig, ORPOTrainer, load, train
from orpo_dist.checkpoints.checkpoint import saved_shapes
from orpo_dist.ensembles.listing import Listed
from orpo_dist.ensembles.soups import make_soup
from orpo_dist.models.answering import mended
from tests.kinds import TRAINABLE

ANSWER = "Four."
ROWS = [
    {"prompt": question, "chosen": ANSWER, "rejected": "I do not know"}
    for question in ("What is two and two?", "How many legs has a cat?", "Count.", "Guess!")
]


@pytest.fixture
def rows(write_rows: Callable[..., Path]) -> Path:
    return write_rows(ROWS)


def settings(model: Path, folder: Path, data: Path, **changes: Any) -> ORPOConfig:
    values = {
        "model": str(model), "data_path": str(data), "project_name": str(folder), "batch_size": 4,
        "gradient_accumulation": 1, "lr": 1e-2, "log": "none", "max_steps": 2,
        "save_strategy": "no", "attention": "padded", "logging_steps": 1000, "warmup_ratio": 0,
    }  # fmt: skip
    return ORPOConfig(**{**values, **changes})


def answer(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    """Ids that plain transformers answers with, greedily, whatever it is told to do by default."""
    if tokenizer.chat_template is None:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
    else:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=60, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def stops(folder: Path, model: Any = None) -> bool:
    """Whether every row is answered as it was trained, and then ended by the model itself."""
    model = model or AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = model.generation_config.eos_token_id
    for row in ROWS:
        ids = answer(model, tokenizer, row["prompt"])
        if len(ids) == 60 or ids[-1] not in (ends if isinstance(ends, list) else [ends]):
            return False
        if ANSWER not in tokenizer.decode(ids[:-1]):
            return False
    return True


@pytest.mark.parametrize("kind", TRAINABLE)
def test_a_trained_model_stops_by_itself(
    kind_dir: Callable[[str], Path], rows: Path, tmp_path: Path, kind: str
) -> None:
    train(settings(kind_dir(kind), tmp_path / "run", rows, max_steps=40))
    assert stops(tmp_path / "run")


ENDS = [500, 502]  # <|endoftext|> and <|im_end|> of qwen-base


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_stops_by_the_settings_beside_it_and_by_itself_once_merged(
    kind_dir: Callable[[str], Path], rows: Path, tmp_path: Path, merge: bool
) -> None:
    run = tmp_path / "run"
    lora = {"peft": True, "lora_r": 8, "merge_adapter": merge}
    train(settings(kind_dir("qwen-base"), run, rows, max_steps=60, **lora))
    assert GenerationConfig.from_pretrained(run).eos_token_id == ENDS
    model = AutoModelForCausalLM.from_pretrained(run)
    if not merge:  # transformers has read those of the base
        model.generation_config = GenerationConfig.from_pretrained(run)
    assert stops(run, model)
    assert load(run).model.generation_config.eos_token_id == ENDS


def saved_ends(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def test_checkpoints_stages_and_soups_hold_the_trained_end(
    kind_dir: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    base = kind_dir("qwen-base")
    for name, lora in (("whole", False), ("lora", True)):
        stages = [{"max_steps": 1}, {"max_steps": 2, "save_strategy": "epoch"}]
        train(settings(base, tmp_path / name, rows, stages=stages, peft=lora))
        for folder in (".", "stage-1", "stage-2/checkpoint-2"):
            assert saved_ends(tmp_path / name / folder) == ENDS
    members = [Listed(str(tmp_path / name)) for name in ("whole", "lora")]
    make_soup(members, tmp_path / "soup")
    make_soup([Listed(str(base))], tmp_path / "soup-of-a-base")
    for soup in ("soup", "soup-of-a-base"):
        assert saved_ends(tmp_path / soup) == ENDS
        assert AutoModelForCausalLM.from_pretrained(tmp_path / soup).config.tie_word_embeddings


# What a base may bring, and what becomes of it.
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9, "do_sample": True}),
    ({"top_k": 20}, {"top_k": 20, "do_sample": True}),
    ({"temperature": 1.0, "top_k": 50}, {"temperature": 1.0, "top_k": 50}),
    ({"temperature": 0.6, "do_sample": False}, {"do_sample": False}),
    ({"temperature": 0, "do_sample": True, "top_p": 0.9}, {}),
    ({"early_stopping": True, "length_penalty": 0.5}, {}),
    ({"early_stopping": True, "num_beams": 4}, {"early_stopping": True, "num_beams": 4}),
    ({"early_stopping": "sometimes", "num_beams": 4}, {"num_beams": 4}),
    ({"num_return_sequences": 3}, {}),
    ({"num_return_sequences": 3, "temperature": 0.7},
     {"num_return_sequences": 3, "temperature": 0.7, "do_sample": True}),
    ({"output_scores": True}, {}),
    ({"streamer": 1, "max_new_tokens": 0, "cache_implementation": "unheard-of"}, {}),
    ({"pad_token_id": -1}, {}),
    ({"suppress_tokens": [3], "forced_eos_token_id": 3}, {"suppress_tokens": [3]}),
    ({"max_window_size": 24000}, {"max_window_size": 24000}),  # of a model's own code
]  # fmt: skip


@pytest.mark.parametrize(("given", "kept"), SETTINGS)
def test_generation_settings_are_mended_or_left_out(
    given: dict[str, Any], kept: dict[str, Any]
) -> None:
    assert mended(given) == kept
    GenerationConfig(**kept).validate(strict=True)


def with_settings(base: Path, folder: Path, given: dict[str, Any], file: str) -> Path:
    """A copy of a model with more in one of its files; without the other, if it is the older."""
    shutil.copytree(base, folder)
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**values, **given}))
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    return folder


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("given", [{"temperature": 0.6}, {"num_return_sequences": 3}])
@pytest.mark.parametrize("lora", [{}, {"peft": True}, {"peft": True, "merge_adapter": True}])
def test_no_base_loses_a_run_at_the_first_save(
    kind_dir: Callable[[str], Path],
    rows: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    given: dict[str, Any],
    lora: dict[str, bool],
) -> None:
    caplog.set_level(logging.INFO, "orpo_dist")
    base = with_settings(kind_dir("qwen-base"), tmp_path / "base", given, file)
    run = tmp_path / "run"
    train(settings(base, run, rows, save_strategy="steps", save_steps=1, **lora))
    for folder in (run, run / "checkpoint-1"):
        saved = GenerationConfig.from_pretrained(folder)
        assert saved.do_sample is (True if "temperature" in given else None)
        assert saved.num_return_sequences is None
        assert saved.eos_token_id == ENDS
    make_soup([Listed(str(run))], tmp_path / "soup")
    assert caplog.text.count("generation settings do not hold together") == 1


def test_a_model_from_python_is_mended_too(kind_dir: Callable[[str], Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(kind_dir("llama3"))
    tokenizer = AutoTokenizer.from_pretrained(kind_dir("llama3"))
    args = settings(Path("none"), tmp_path, Path("none")).replace(model=None, data_path=[])
    trainer = ORPOTrainer(model=model, args=args, train_dataset=ROWS, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.6, 0.9)
    ends = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
    assert saved.eos_token_id == ends


def test_the_tokenizer_is_saved_as_it_was(
    kind_dir: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    train(settings(kind_dir("qwen-base"), tmp_path / "run", rows))
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    base = AutoTokenizer.from_pretrained(kind_dir("qwen-base"))
    assert (saved.eos_token, saved.chat_template) == (base.eos_token, base.chat_template)


def test_tied_weights_are_written_once(
    kind_dir: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    base = kind_dir("qwen3")
    train(settings(base, tmp_path / "whole", rows))
    lora = {"peft": True, "target_modules": "q_proj", "merge_adapter": True}
    train(settings(base, tmp_path / "merged", rows, **lora))
    make_soup([Listed(str(tmp_path / name)) for name in ("whole", "merged")], tmp_path / "soup")
    for name in ("whole", "merged", "soup"):
        saved = saved_shapes(tmp_path / name)
        assert "lm_head.weight" not in saved
        assert saved == saved_shapes(base)
