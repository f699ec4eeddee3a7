"""The padded forward against one sequence at a time, with masks by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orpo_dist.base.types import Pair
from orpo_dist.scoring.padding import pad_pairs, padded_scores

PAIRS = [
    Pair([5, 6, 7, 8], [9, 10, 2], [11, 2]),
    Pair([20], [21, 22, 23, 24, 2], [2, 2, 30, 2]),  # holds the end token inside an answer
    Pair([3] * 30, [4] * 12 + [2], [5, 2]),
]


def one_at_a_time(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probs of the answer's tokens from a single unpadded sequence, (len(answer),)."""
    ids = torch.tensor([prompt + answer])
    logp = model(ids).logits[0, :-1].log_softmax(-1)
    return logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


@pytest.mark.parametrize("pad_id", [0, 2])
def test_scores_equal_single_sequences_whatever_the_padding_token(
    tiny_model: Any, pad_id: int
) -> None:
    scores = padded_scores(tiny_model, pad_pairs(PAIRS, pad_id=pad_id))
    for row, pair in enumerate(PAIRS):
        chosen = one_at_a_time(tiny_model, pair.prompt, pair.chosen)
        rejected = one_at_a_time(tiny_model, pair.prompt, pair.rejected)
        assert scores.chosen_logp[row].item() == pytest.approx(chosen.mean().item(), abs=1e-5)
        assert scores.rejected_logp[row].item() == pytest.approx(rejected.mean().item(), abs=1e-5)
        assert scores.nll_sum[row].item() == pytest.approx(-chosen.sum().item(), abs=1e-4)
        assert scores.nll_tokens[row] == len(pair.chosen)


def test_prompt_and_completion_scope_covers_all_but_the_first_token(tiny_model: Any) -> None:
    batch = pad_pairs(PAIRS, nll_scope="prompt_and_completion")
    scores = padded_scores(tiny_model, batch)
    pair = PAIRS[0]
    whole = one_at_a_time(tiny_model, pair.prompt[:1], pair.prompt[1:] + pair.chosen)
    assert scores.nll_sum[0].item() == pytest.approx(-whole.sum().item(), abs=1e-4)
    assert scores.nll_tokens[0] == len(pair.prompt) + len(pair.chosen) - 1


def test_scope_does_not_change_the_answers_log_probs(tiny_model: Any) -> None:
    one = padded_scores(tiny_model, pad_pairs(PAIRS))
    other = padded_scores(tiny_model, pad_pairs(PAIRS, "prompt_and_completion"))
    assert torch.equal(one.chosen_logp, other.chosen_logp)


def test_filler_has_no_weight() -> None:
    assert pad_pairs(PAIRS[:1], real=False).weight.tolist() == [0.0]
    assert pad_pairs(PAIRS).weight.tolist() == [1.0, 1.0, 1.0]
