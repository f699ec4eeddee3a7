"""The arithmetic of a step: as torch counts it, for every shape of model, or not at all."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3Config,
    RwkvConfig,
)

from orpo_dist.batching.steps import Work
from orpo_dist.models.flops import model_flops


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


# --- what cannot be known stops nothing


def families() -> dict[str, PretrainedConfig]:
    small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {**small, "num_attention_heads": 4, "intermediate_size": 48}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return {
        "wide heads": Qwen3Config(**heads, num_key_value_heads=2, head_dim=16),
        "other names": GPT2Config(vocab_size=100, **gpt2),
        "fused": GPTNeoXConfig(**heads),
        "half convolutions": Lfm2Config(
            **heads, num_key_value_heads=2, layer_types=["conv", "full_attention"]
        ),
        "no attention": MambaConfig(**small),
        "no heads": RwkvConfig(**small),
        "experts": MixtralConfig(**heads, num_local_experts=4, num_key_value_heads=2),
    }


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("wide heads", (2, 64)), ("other names", (2, 32)), ("fused", (2, 32)),
        ("half convolutions", (1, 32)), ("no attention", None), ("no heads", None),
        ("experts", (2, 32)),
    ],
)  # fmt: skip
def test_attention_is_read_off_the_modules(family: str, attention: tuple[int, int] | None) -> None:
    with torch.device("meta"):
        flops = model_flops(AutoModelForCausalLM.from_config(families()[family]))
    assert (flops and (flops.layers, flops.width)) == attention


def test_layers_that_differ_are_counted_one_by_one() -> None:
    """As in models whose config lists the heads of every layer."""
    model = llama(tied=True)
    model.model.layers[0].self_attn.o_proj = torch.nn.Linear(8, 32)
    model.config.__dict__["num_attention_heads"] = [1, 4, 4]  # transformers would check it
    flops = model_flops(model)
    assert flops is not None and flops.layers * flops.width == 8 + 32 + 32
    for layer in model.model.layers:
        layer.self_attn.output = layer.self_attn._modules.pop("o_proj")
    assert model_flops(model) is None


def test_a_model_that_answers_nothing_has_no_figure() -> None:
    assert model_flops(torch.nn.Linear(2, 2)) is None
