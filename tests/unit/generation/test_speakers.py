"""Who answers: in batches, and not at all where weights are not finite."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import UserError, load
from orpo_dist.generation.speakers import answers, speakers


def test_answers_of_a_batch_are_those_of_single_prompts(tiny_model_dir: Path) -> None:
    (speaker,) = speakers(str(tiny_model_dir))
    prompts = ["a", "How do I boil an egg for my breakfast?", "b c d", "x"]
    batched = list(answers(speaker, prompts, 3, max_new_tokens=6))
    handle = load(tiny_model_dir)
    assert batched == [handle.generate(prompt, max_new_tokens=6) for prompt in prompts]
    assert len(set(batched)) > 1


def test_weights_that_are_not_finite(tiny_model: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model_dir, tmp_path / "m")
    tiny_model.lm_head.weight.data.fill_(float("nan"))
    tiny_model.save_pretrained(model)
    with pytest.raises(UserError, match=r"m: its weights or logits are not finite$"):
        load(model).generate("Hi", do_sample=True)


def test_the_handle_returns_all_texts_or_none(tiny_model_dir: Path) -> None:
    handle = load(tiny_model_dir)
    several = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 3}
    texts = handle.generate("Hello", **several)
    assert len(set(texts)) == 3
    assert handle.generate(["Hello", "Why?"], **several)[:3] == texts
    assert handle.generate([]) == []
    with pytest.raises(UserError, match="return_dict_in_generate"):
        handle.generate("Hello", return_dict_in_generate=True)
