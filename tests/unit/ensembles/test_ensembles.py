"""Ensembles: the average against hand-computed distributions, decisions, members in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orpo_dist import UserError, evaluate_model, load, load_ensemble
from orpo_dist.cli import main
from orpo_dist.ensembles.average import mix_logits
from orpo_dist.ensembles.choose import log_odds, total_scores, winner
from orpo_dist.ensembles.evaluate import chosen_table, evaluate_ensemble
from tests.conftest import DEMO
from tests.unit.evaluation.test_evaluation import table

EVAL = str(DEMO / "eval.jsonl")
PROMPTS = ["How do I boil an egg?", "Hi", "Why is the sky blue in the morning and red at night?"]
SAMPLING = {"do_sample": True, "temperature": 1.3, "top_p": 0.9, "top_k": 40}


@pytest.fixture(scope="session")
def three(tiny_model_dir: Path, other_model_dirs: list[Path]) -> list[Path]:
    return [tiny_model_dir, *other_model_dirs]


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


def test_decisions_by_hand() -> None:
    scores = np.array([[-1.0, -1.2, -3.0], [-2.0, -0.9, -0.5]])
    even, skewed = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    assert total_scores(scores, even, "vote") == pytest.approx([-1.5, -1.05, -1.75])
    assert winner(scores, even, "vote") == 1
    assert winner(scores, skewed, "vote") == 0
    assert winner(scores, even, "best_of") == 2
    assert winner(np.zeros((2, 3)) - 1, even, "vote") == 0  # a tie goes to the earlier answer
    odds = np.log(np.exp(scores) / (1 - np.exp(scores)))
    assert log_odds(scores) == pytest.approx(odds)
    mine = odds[0, 0] - (odds[0, 1] + odds[0, 2]) / 2
    best = total_scores(scores, even, "best_of", "odds")
    assert best[0] == pytest.approx(max(mine, odds[1, 0] - (odds[1, 1] + odds[1, 2]) / 2))
    sure_of_everything = np.array([[-0.01, -0.012], [-2.0, -0.5]])
    assert winner(sure_of_everything, even, "best_of") == 0
    assert winner(sure_of_everything, even, "best_of", "odds") == 1
    assert np.isfinite(log_odds(np.array([0.0, -1e-30, -800.0]))).all()


@pytest.mark.parametrize("method", ["vote", "best_of"])
@pytest.mark.parametrize("criterion", ["logp", "odds"])
def test_pairs_are_decided_as_answers_are(method: Any, criterion: Any) -> None:
    rng = np.random.default_rng(0)
    sides = -rng.exponential(1.5, (3, 2, 200))
    weights = np.array([0.5, 0.3, 0.2])
    found = chosen_table([table(*pair) for pair in sides], weights, method, criterion)
    expected = [winner(sides[:, :, n], weights, method, criterion) == 0 for n in range(200)]
    assert found.correct.tolist() == expected


def test_vote_takes_the_answer_that_all_score_highest(three: list[Path]) -> None:
    ensemble = load_ensemble(three, "vote")
    answers = [member.ready().generate(PROMPTS[0], max_new_tokens=8) for member in ensemble.members]
    assert len(set(answers)) == 3
    means = [np.mean([load(p).score(PROMPTS[0], answer) for p in three]) for answer in answers]
    found = ensemble.candidates([PROMPTS[0]], max_new_tokens=8)[0]
    assert [c.text for c in found] == answers
    assert [c.score for c in found] == pytest.approx(means, abs=1e-5)
    best = answers[int(np.argmax(means))]
    assert ensemble.generate(PROMPTS[0], max_new_tokens=8) == best
    assert ensemble.generate(PROMPTS, max_new_tokens=8)[0] == best
    assert ensemble.score(PROMPTS[0], best) == pytest.approx(max(means), abs=1e-5)


def test_several_samples_of_each_member(three: list[Path]) -> None:
    ensemble = load_ensemble(three[:2], "best_of", samples=3)
    with pytest.raises(UserError, match="greedy answers are all the same"):
        ensemble.generate("Hi", max_new_tokens=4)
    torch.manual_seed(0)
    found = ensemble.candidates(["Hi"], max_new_tokens=4, do_sample=True)[0]
    assert [c.by for c in found] == [str(three[0])] * 3 + [str(three[1])] * 3
    alone = [max(load(p).score("Hi", c.text) for p in three[:2]) for c in found if c.text.strip()]
    assert [c.score for c in found if c.text.strip()] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("average_of", ["probabilities", "logits"])
def test_evaluation_on_the_packed_path_is_that_of_the_averaged_model(
    average_of: Any, three: list[Path]
) -> None:
    ensemble = load_ensemble(three, average_of=average_of, weights=[1, 2, 3])
    found = evaluate_ensemble(ensemble, EVAL, progress=False)["models"]
    ensemble.averaged.config = ensemble.averaged.config.replace(attention="padded")
    slow = evaluate_model(ensemble.averaged, EVAL, progress=False)
    for name in ("perplexity", "mean_margin", "mean_log_odds"):
        assert found["average"][name] == pytest.approx(slow[name], rel=1e-4)
    assert found["average"]["preference_accuracy"] == slow["preference_accuracy"]
    alone = evaluate_model(three[1], EVAL, progress=False)
    assert found[str(three[1])]["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-6)


def test_evaluate_command_on_all_methods(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ensemble"
    assert main(["ensemble", "create", str(folder), *map(str, three)]) == 0
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    words = ["ensemble", "evaluate", str(folder), "--data-path", EVAL, "--json", str(out)]
    assert main([*words, "--html", str(page)]) == 0
    found = json.loads(out.read_text())
    assert list(found["models"]) == [*map(str, three), "average", "vote", "best_of"]
    assert found["models"]["vote"]["perplexity"] is None
    best = max(three, key=lambda p: found["models"][str(p)]["preference_accuracy"])
    assert {c["first"] for c in found["comparisons"]} == {str(best)}
    assert "<svg" in page.read_text()
    assert "best_of against" in capsys.readouterr().out


def test_generate_command(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    words = ["ensemble", "generate", *map(str, three), "--prompt", "Hi", "--max-new-tokens", "5"]
    assert main(words) == 0
    expected = load_ensemble(three).generate("Hi", max_new_tokens=5)
    assert capsys.readouterr().out == expected + "\n"
    many = [*words, "--prompt", "Why is the sky blue?", "--prompt", "x", "--batch-size", "2"]
    assert main([*many, "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    singles = load_ensemble(three)
    for row in rows:
        assert row["answer"] == singles.generate(row["prompt"], max_new_tokens=5)
    assert len(rows) == 3 and capsys.readouterr().out.count("\n> ") == 3
    assert main([*words, "--method", "vote", "--all", "--json", str(out)]) == 0
    row = json.loads(out.read_text())
    assert row["answer"] == max(row["candidates"], key=lambda c: c["score"])["text"]
    assert capsys.readouterr().out.count(f"[{three[0]}, -") == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["generate", "a", "a", "--prompt", "x"], "member a: is given twice"),
        (["generate", "a", "b", "--prompt", "x", "--weights", "1"], "1 numbers for 2 members"),
        (["generate", "a", "b", "--prompt", "x", "--weights", "1", "-1"], "must be above 0"),
        (["generate", "a", "b", "--prompt", "x", "--weights", "1", "inf"], "above 0 and finite"),
        (["generate", "a", "b"], "nothing to answer"),
        (["create", f"{__file__}/x", "a", "b"], "cannot be written (Not a directory)"),
        (["generate", "a", "--prompt", "x", "--batch-size", "0"], "--batch-size 0: is out of"),
        (["generate", "a", "--prompt", "x", "--all"], "are for vote and best_of"),
        (["evaluate", "a", "b"], "data_path is missing"),
        (["evaluate", "./no", "--data-path", EVAL], "model ./no: no such folder"),
        (["soup", "out", "a", "b", "--weights", "1", "2"], "uniform takes none"),
        (["soup", "out", "a", "b", "--method", "greedy"], "greedy needs pairs to judge by"),
        (["soup", "out", "a", "b", "--method", "ties", "--density", "0"], "density 0"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", *words]) == 2
    captured = capsys.readouterr()
    assert part in captured.err and captured.err.count("\n") == 1
