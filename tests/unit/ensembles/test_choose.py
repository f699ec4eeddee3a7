"""Votes and the best of several answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orpo_dist import UserError, load, load_ensemble
from orpo_dist.ensembles.choose import log_odds, total_scores, winner
from orpo_dist.ensembles.evaluate import chosen_table
from tests.unit.ensembles.members import PROMPTS
from tests.unit.evaluation.test_evaluation import table


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
