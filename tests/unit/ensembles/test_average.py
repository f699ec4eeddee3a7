"""Averages of members, beside mixtures by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orpo_dist import UserError, load, load_ensemble
from orpo_dist.ensembles.average import mix_logits
from tests.unit.ensembles.members import PROMPTS

SAMPLING = {"do_sample": True, "temperature": 1.3, "top_p": 0.9, "top_k": 40}


@pytest.fixture(scope="session")
def foreign_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with two words of its vocabulary exchanged."""
    folder = tmp_path_factory.mktemp("foreign")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return folder


@pytest.mark.parametrize("average_of", ["probabilities", "logits"])
@pytest.mark.parametrize("options", [{}, SAMPLING, {"num_beams": 3}])
def test_average_of_one_is_that_model_token_for_token(
    average_of: Any, options: dict[str, Any], tiny_model_dir: Path
) -> None:
    alone, one = load(tiny_model_dir), load_ensemble(tiny_model_dir, average_of=average_of)
    torch.manual_seed(0)
    expected = alone.generate(PROMPTS, max_new_tokens=20, **options)
    torch.manual_seed(0)
    assert one.generate(PROMPTS, max_new_tokens=20, **options) == expected
    assert one.score("Hi", "there") == pytest.approx(alone.score("Hi", "there"), abs=1e-6)


def test_mixtures_by_hand() -> None:
    first, second = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    logits = [torch.tensor(p).log() + shift for p, shift in ((first, 3.0), (second, -1.0))]
    mixed = mix_logits(logits, [0.75, 0.25], "probabilities").softmax(-1)
    assert mixed.numpy() == pytest.approx(0.75 * first + 0.25 * second)
    geometric = first**0.75 * second**0.25
    mixed = mix_logits(logits, [0.75, 0.25], "logits").softmax(-1)
    assert mixed.numpy() == pytest.approx(geometric / geometric.sum())


@pytest.mark.parametrize("average_of", ["probabilities", "logits"])
def test_average_of_two_is_the_hand_made_distribution_token_by_token(
    average_of: Any, three: list[Path]
) -> None:
    """Greedy decoding without caches or batches, the distributions mixed here, in NumPy."""
    ensemble = load_ensemble(three[:2], weights=[3, 1], average_of=average_of)
    handles = [load(path) for path in three[:2]]
    answers = []
    for prompt in PROMPTS:
        ids = handles[0].encoder.prompt_ids(prompt)
        written: list[int] = []
        while len(written) < 12 and handles[0].encoder.end_id not in written:
            with torch.no_grad():
                logits = [h.model(torch.tensor([ids + written])).logits[0, -1] for h in handles]
            if average_of == "probabilities":
                p = sum(
                    w * z.softmax(-1).double() for w, z in zip((0.75, 0.25), logits, strict=True)
                )
            else:
                p = 0.75 * logits[0].double() + 0.25 * logits[1].double()
            written.append(int(p.argmax()))
        answers.append(handles[0].tokenizer.decode(written, skip_special_tokens=True))
    assert ensemble.generate(PROMPTS, max_new_tokens=12) == answers
    singles = [handle.generate(PROMPTS, max_new_tokens=12) for handle in handles]
    assert answers not in singles  # it is not just one of them


def test_average_scores_are_those_of_the_mixture(three: list[Path]) -> None:
    ensemble = load_ensemble(three[:2], weights=[3, 1])
    ids, answer = ensemble.members[0].handle.encoder.encode_answer("Hi", "there you are")
    probabilities = []
    for path in three[:2]:
        with torch.no_grad():
            p = load(path).model(torch.tensor([ids + answer])).logits[0].softmax(-1)
        probabilities.append(
            [p[len(ids) - 1 + at, token].item() for at, token in enumerate(answer)]
        )
    expected = np.log(0.75 * np.array(probabilities[0]) + 0.25 * np.array(probabilities[1])).mean()
    assert ensemble.score("Hi", "there you are") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}])
def test_caches_change_nothing(options: dict[str, Any], three: list[Path]) -> None:
    ensemble = load_ensemble(three)
    found = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        found.append(ensemble.generate(PROMPTS, max_new_tokens=10, use_cache=use_cache, **options))
    assert found[0] == found[1]


def test_adapters_share_their_base_and_answer_as_alone(
    tiny_model_dir: Path, adapter_dirs: list[Path]
) -> None:
    ensemble = load_ensemble(adapter_dirs, "vote")
    first, second = (member.handle.model for member in ensemble.members)
    assert first is second
    base = sum(p.numel() for p in load(tiny_model_dir).model.parameters())
    assert sum(p.numel() for p in first.parameters()) < 1.5 * base
    answers = []
    for member, path in zip(ensemble.members * 2, adapter_dirs * 2, strict=True):
        alone = load(path)
        answers.append(member.ready().generate("Hello", max_new_tokens=8))
        assert answers[-1] == alone.generate("Hello", max_new_tokens=8)
        assert member.ready().score("Hi", "you") == pytest.approx(
            alone.score("Hi", "you"), abs=1e-6
        )
    assert len(set(answers)) == 2


def test_average_of_adapters_is_that_of_whole_models(
    adapter_dirs: list[Path], tmp_path: Path
) -> None:
    whole = []
    for path in adapter_dirs:
        whole.append(tmp_path / path.name)
        load(path).model.merge_and_unload().save_pretrained(whole[-1])
        AutoTokenizer.from_pretrained(path).save_pretrained(whole[-1])
    adapters, models = load_ensemble(adapter_dirs), load_ensemble(whole)
    assert adapters.generate(PROMPTS, max_new_tokens=10) == models.generate(
        PROMPTS, max_new_tokens=10
    )
    assert adapters.score("Hi", "you") == pytest.approx(models.score("Hi", "you"), abs=1e-5)


def test_another_vocabulary_is_refused_for_average_and_allowed_for_vote(
    tiny_model_dir: Path, foreign_dir: Path
) -> None:
    with pytest.raises(UserError, match="another vocabulary"):
        load_ensemble([tiny_model_dir, foreign_dir])
    ensemble = load_ensemble([tiny_model_dir, foreign_dir], "vote")
    assert ensemble.generate("a", max_new_tokens=3)
    scores = ensemble.scores("a b", ["b a"])[:, 0]
    alone = [load(path).score("a b", "b a") for path in (tiny_model_dir, foreign_dir)]
    assert scores == pytest.approx(alone, abs=1e-5)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize("average_of", ["probabilities", "logits"])
def test_equal_members_give_back_their_own_logits(average_of: Any) -> None:
    """transformers' repetition penalty divides logits above 0, multiplies those below."""
    logits = torch.tensor([[3.0, 1.0, -2.0], [-1.0, -4.0, -9.0]])
    torch.testing.assert_close(mix_logits([logits, logits], [0.25, 0.75], average_of), logits)
