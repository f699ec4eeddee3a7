"""Mixtures of experts: the share of the weights that a token meets, beside the built models."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.zoo.shapes import tiny_config
from orpo_dist.models.experts import used_shares
from orpo_dist.models.flops import model_flops

FAMILIES = (
    "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "dbrx", "jetmoe", "granitemoe",
    "ernie4_5_moe", "inkling_text",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_those_that_one_token_gives_gradients_to(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family)).float()
    shares = used_shares(model)
    model(input_ids=torch.tensor([[7]]), use_cache=False).logits.square().sum().backward()
    routed = [p for p in model.parameters() if id(p) in shares]
    assert routed
    for parameter in routed:
        assert parameter.grad is not None
        if parameter.grad.abs().max() < 1e-8:  # of queries: one token leaves attention no choice
            continue
        met = (parameter.grad.flatten(1) != 0).any(1).float().mean().item()
        assert met == pytest.approx(shares[id(parameter)], abs=0.01)


def test_a_model_without_experts_has_none() -> None:
    with torch.device("meta"):
        assert used_shares(AutoModelForCausalLM.from_config(tiny_config("llama"))) == {}


def test_flops_are_those_of_the_experts_that_are_met() -> None:
    config = tiny_config("mixtral")
    body = []
    for used in (1, 2):
        config.num_experts_per_tok = used
        with torch.device("meta"):
            flops = model_flops(AutoModelForCausalLM.from_config(config))
        assert flops is not None
        body.append(flops.body)
    expert = 3 * config.hidden_size * config.intermediate_size
    assert body[1] - body[0] == config.num_hidden_layers * expert


def test_what_no_config_says_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("mixtral"))
    monkeypatch.setattr("orpo_dist.models.experts.USED", ())
    with pytest.raises(LookupError):
        used_shares(model)
    assert model_flops(model) is None
