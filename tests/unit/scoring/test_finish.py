"""What families do after the head, beside the models themselves."""

from __future__ import annotations

import pytest
import torch
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from orpo_dist.scoring.finish import Finish
from tests.invariance.test_packed import small_model


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite"])
def test_logits_are_those_of_the_model(family: str) -> None:
    model = small_model(family)
    ids = torch.arange(3, 20)[None]
    hidden = model.base_model(input_ids=ids).last_hidden_state
    found = Finish.of(model.config)(model.lm_head(hidden))
    assert torch.equal(found, model(input_ids=ids).logits)


def test_what_configs_say() -> None:
    assert Finish.of(LlamaConfig()) == Finish()
    assert Finish.of(Gemma2Config()) == Finish(cap=30.0)
    assert Finish.of(CohereConfig()) == Finish(times=0.0625)
    assert Finish.of(GraniteConfig(logits_scaling=8.0)) == Finish(over=8.0)


def test_both_factors_as_one() -> None:
    assert Finish().scale == 1.0
    logits = torch.tensor([[-90.0, 3.0, 60.0]])  # in this order where a family does several
    assert torch.equal(Finish(0.5, 2.0, 30.0)(logits), torch.tanh(logits / 4 / 30) * 30)
    assert Finish(3.0, 4.0).scale == 0.75
