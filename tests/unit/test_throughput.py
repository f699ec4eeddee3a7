"""Rates, padding avoided, and the arithmetic behind MFU."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_dist.batching import Work
from orpo_dist.throughput import ModelFlops, Throughput, model_flops, peak_flops


def llama(tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_torch_counts(tied: bool) -> None:
    """torch's own counter over forward and backward of a sequence whose logits are all scored."""
    from torch.utils.flop_counter import FlopCounterMode

    model = llama(tied)
    model.set_attn_implementation("eager")
    tokens = 24
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(tokens)[None]).logits.sum().backward()
    flops = model_flops(model)
    assert flops is not None
    # Eager attention computes the masked half as well.
    work = Work(tokens=tokens, scored=tokens, padded=tokens, seen=tokens**2)
    assert flops(work) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    model = llama(tied=True)
    work = Work(tokens=10, scored=10, padded=40)
    full = model_flops(model)
    model.requires_grad_(False)
    frozen = model_flops(model)
    assert full is not None and frozen is not None
    assert frozen(work) / full(work) == pytest.approx(4 / 6)


def test_experts_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(tied=True)
    model.config.num_experts = 4
    assert model_flops(model) is None


def test_rates_of_an_interval() -> None:
    flops = ModelFlops(1000, 0, 1000, 0, 0, 0)
    clock: Any = Throughput(flops, peak=1e9)
    assert clock.pop() == {}
    for _ in range(2):
        clock.on_step_begin(None, None, None)
        time.sleep(0.02)
        clock.add(Work(tokens=50, scored=20, padded=200), pairs=4)
        clock.on_step_end(None, None, None)
        time.sleep(0.05)  # an evaluation: not a step's time
    found = clock.pop()
    assert 0.02 <= found["seconds_per_step"] < 0.05
    assert found["pairs_per_second"] == pytest.approx(4 / found["seconds_per_step"])
    assert found["tokens_per_second"] == pytest.approx(50 / found["seconds_per_step"])
    assert found["padding_avoided"] == 0.75
    assert found["mfu"] == pytest.approx(6000 * found["tokens_per_second"] / 1e9)
    assert clock.pop() == {}


def test_no_peak_is_claimed_for_a_cpu() -> None:
    assert peak_flops(torch.device("cpu"), bf16=True) is None
