"""Ropes that change with the length: a pair's score is its own, whatever its neighbours are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from orpo_dist.base.types import Pair, UserError
from orpo_dist.batching.steps import StepPlan
from orpo_dist.scoring import proof
from orpo_dist.scoring.scorer import Scorer, make_scorer
from orpo_dist.scoring.switches import Switch, sides, stand_apart, switches
from tests.conftest import disturbed
from tests.invariance.test_proof import DYNAMIC, LONGROPE, made
from tests.invariance.test_sinks import MOE

AT = 64
SHORT = {"original_max_position_embeddings": AT}
SCALES = {"short_mscale": 1.2, "long_mscale": 1.5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": AT}),
    "longrope": ("Phi3", {"rope_parameters": LONGROPE | SHORT, **SHORT}),
    "longrope, experts": (
        "Phimoe", {"rope_parameters": LONGROPE | SHORT | SCALES, **SHORT, "sliding_window": 32,
                   "num_local_experts": 4},
    ),
}  # fmt: skip
# Both answers below the switch, both beyond, one on each side, and again below.
LENGTHS = ((40, 10, 23), (5, 90, 70), (33, 3, 1), (30, 40, 10), (60, 4, 3), (9, 5, 5))


def made_pairs() -> list[Pair]:
    draw = torch.Generator().manual_seed(3)
    return [
        Pair(*(torch.randint(3, 300, (n,), generator=draw).tolist() for n in lengths))
        for lengths in LENGTHS
    ]


def model_of(name: str) -> Any:
    family, settings = MODELS[name]
    return disturbed(made(family, **settings), 1).eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_equal_to_single_forwards(name: str, attention: str) -> None:
    """Scores of prompts and answers, and the gradient of every parameter."""
    model, pairs = model_of(name), made_pairs()
    scorer = make_scorer(model, attention, "prompt_and_completion")
    expected = proof.measured(model, proof.alone(model, pairs))
    batch = scorer.collate(pairs)
    assert batch.sides is not None
    found = proof.measured(model, proof.packed_scores(scorer.score(model, batch)))
    assert proof.scores_apart(found[0], expected[0], pairs) < 1e-5
    assert proof.gradient_apart(found[1], expected[1]) < 1e-5
    blind = Scorer(scorer.packed, "prompt_and_completion")  # as it was: with its neighbours' rope
    with torch.no_grad():
        apart = proof.packed_scores(blind.score(model, blind.collate(pairs)))
    assert proof.scores_apart(torch.stack(apart), expected[0], pairs) > 1e-3


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_what_came_before_does_not_matter(attention: str) -> None:
    """transformers keeps the frequencies of the longest sequence since the last short one."""
    model, pairs = model_of("dynamic"), made_pairs()
    scorer = make_scorer(model, attention)
    with torch.no_grad():
        first = scorer.score(model, scorer.collate(pairs[:1])).chosen_logp
        middle = scorer.score(model, scorer.collate(pairs[4:5])).chosen_logp
        scorer.score(model, scorer.collate(pairs[1:2]))
        again = [scorer.score(model, scorer.collate([pairs[at]])).chosen_logp for at in (0, 4)]
    torch.testing.assert_close(torch.cat(again), torch.cat([first, middle]), rtol=0, atol=1e-6)


def test_only_answers_on_two_sides_store_their_prompt_twice() -> None:
    scorer = make_scorer(model_of("longrope"), "packed")
    pairs = made_pairs()
    batch = scorer.collate(pairs)
    lengths = np.array(LENGTHS)
    assert stand_apart(scorer.switches, lengths).tolist() == [
        False,
        *2 * [False],
        True,
        False,
        False,
    ]
    tokens = lengths.sum() + 30
    assert batch.input_ids.shape == batch.position_ids.shape == (1, tokens)
    assert batch.segments[3:5] == ((0, 70, 0), (0, 40, 0))
    at = lengths[:3].sum()
    assert batch.input_ids[0, at : at + 110].tolist() == (
        pairs[3].prompt + pairs[3].chosen + pairs[3].prompt + pairs[3].rejected
    )
    repeated = scorer.repeated(lengths)
    assert repeated is not None and repeated.tolist() == [0, 0, 0, 30, 0, 0]
    plan = StepPlan(lengths, lengths[:, 1], 6, 6, repeated=repeated)
    assert plan.sizes.sum() == tokens
    assert scorer.collate(pairs[:1]).sides is None  # all on one side: nothing is sorted


def test_sides() -> None:
    lengths = np.array([3, 64, 65, 80, 80])
    assert sides((Switch(64, exact=False),), lengths).tolist() == [0, 0, 1, 1, 1]
    assert sides((Switch(64, exact=True),), lengths).tolist() == [0, 0, 1, 2, 2]
    assert sides((Switch(64, False), Switch(70, False)), lengths).tolist() == [0, 0, 1, 2, 2]
    assert sides((), lengths).tolist() == [0] * 5
    assert switches(model_of("longrope").config) == (Switch(AT, exact=False),)
    assert switches(made("GptOss", head_dim=8, **MOE).config) == ()


def test_the_proof_sees_a_rope_that_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import orpo_dist.scoring.miniature
    import orpo_dist.scoring.scorer

    for module in (orpo_dist.scoring.miniature, orpo_dist.scoring.scorer):
        monkeypatch.setattr(module, "teach_ropes", lambda core: None)
    for attention in ("auto", "padded"):
        with pytest.raises(UserError, match="scores differently beside longer answers"):
            make_scorer(model_of("longrope"), attention)
