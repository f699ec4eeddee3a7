"""What is switched off in a base model, by the kind of a number: no forward pass is needed here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_dist.models.randomness import as_it_was, quiet


def llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {
        "vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))


@pytest.mark.parametrize("chance", [0.25, 1])
def test_a_chance_is_switched_off_as_a_float_and_as_an_integer(chance: float) -> None:
    """Attention reads the number as it runs: from its own attribute, others from the config."""
    model = llama(attention_dropout=chance)
    assert quiet(model) == f"attention_dropout {chance:g}; 2 modules with attention_dropout"
    assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {0}
    assert model.config.attention_dropout == 0
    assert type(model.config.attention_dropout) is type(chance)  # as a strict config wants it
    with as_it_was(model):
        assert model.config.attention_dropout == chance
    assert model.config.attention_dropout == 0


def test_what_was_off_is_no_news() -> None:
    assert quiet(llama()) == ""


def test_layers_and_numbers_are_counted_by_kind() -> None:
    model = llama(attention_dropout=0.1)
    model.config.resid_pdrop, model.config.use_dropout = 0.5, True
    model.config.classifier_dropout = 0.3  # of a head that a language model does not run
    model.model.norm = nn.Sequential(nn.Dropout(0.2), nn.Dropout2d(0.0), nn.AlphaDropout(0.1))
    assert quiet(model) == (
        "attention_dropout 0.1, resid_pdrop 0.5; 2 modules with attention_dropout, 2 dropout layers"
    )
    assert [layer.p for layer in model.model.norm] == [0.0, 0.0, 0.0]
    assert (model.config.use_dropout, model.config.classifier_dropout) == (True, 0.3)


def test_the_dropout_of_an_adapter_stays() -> None:
    model = llama()
    model.model.layers[0].lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.5)})
    assert quiet(model) == ""
    assert model.model.layers[0].lora_dropout["default"].p == 0.5


class Router(nn.Module):
    """Draws in training alone; its number is of use in evaluation as well."""

    def __init__(self, jitter: float):
        super().__init__()
        self.jitter_noise, self.inner = jitter, nn.Linear(2, 2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * (1 + self.training * self.jitter_noise * torch.rand_like(hidden))


@pytest.mark.parametrize(("jitter", "said"), [(0.1, "1 routers with jitter"), (0.0, "")])
def test_a_router_stays_in_evaluation_and_keeps_its_number(jitter: float, said: str) -> None:
    model = llama()
    model.model.layers[1].mlp = Router(jitter)
    assert quiet(model) == said
    model.eval().train()
    router = model.model.layers[1].mlp
    assert not router.training and router.inner.training and model.model.layers[1].training
    assert router.jitter_noise == jitter
    torch.testing.assert_close(router(torch.ones(3)), torch.ones(3), rtol=0, atol=0)
