"""An adapter goes on what can be adapted, says what it reaches, and comes back as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from orpo_dist import ORPOConfig, UserError
from orpo_dist.models.adapters import add_adapter, lora_config
from orpo_dist.models.targets import reached, unfit_layers
from tests.families import small_config

IDS = torch.arange(1, 30)[None]
# What is left out, and the reason in short.
LEFT_OUT = {
    "llama4_text": {"feed_forward.router": "returns something else"},
    "phimoe": {"mlp.router": "returns something else"},
    "deepseek_v4": {"o_a_proj": "returns something else"},
    "mamba": {"dt_proj": "is not called", "out_proj": "is read past its call"},
    "nemotron_h": {"out_proj": "is read past its call"},
    "jamba": {"dt_proj": "is not called"},
    "laguna": {"shared_experts.gate_proj": "does not come back"},
    "llama": {},
    "gpt2": {},
    "falcon": {},
}


def small(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small_config(kind)).eval()


def lora(**settings: Any) -> Any:
    return lora_config(ORPOConfig(peft=True, lora_r=4, **settings))


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_all_linear_trains_saves_and_comes_back(kind: str, tmp_path: Path) -> None:
    model, config = small(kind), lora()
    base = copy.deepcopy(model)
    policy = add_adapter(model, config)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0, 0.1)
    logits = policy(input_ids=IDS, use_cache=False).logits
    logits.sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    policy.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(again(input_ids=IDS, use_cache=False).logits, logits)
    said = reached(policy, config)
    for name, reason in LEFT_OUT[kind].items():
        assert f"{name} ({reason}" in said
    assert ("left out" in said) == bool(LEFT_OUT[kind])


def test_a_layer_by_name_that_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(UserError, match=r"target_modules q_proj,router: .*router returns someth"):
        add_adapter(small("llama4_text"), lora(target_modules="q_proj,router"))
    with pytest.raises(UserError, match=r"shared_experts\.gate_proj does not come back"):
        add_adapter(small("laguna"), lora(target_modules="gate_proj,q_proj"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("llama", "reach 67% of the base's"),
        ("qwen3_moe", "none adapted"),
        ("llama4_text", "none adapted"),
    ],
)
def test_it_says_what_it_reaches(kind: str, said: str) -> None:
    policy = add_adapter(small(kind), lora())
    text = reached(policy, lora())
    assert said in text
    layers = [m for m in policy.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    trains = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert text.startswith(f"{len(layers)} modules (") and f", {trains:,} weights to train" in text
    base = sum(p.numel() for n, p in policy.named_parameters() if "lora_" not in n)
    assert f"of the base's {base:,}" in text
    assert ("experts" in text) == (kind != "llama")


def test_what_is_read_past_its_layer_in_training_is_left_out() -> None:
    """Gemma 3n calls a layer in evaluation, and multiplies with its weight itself in training."""
    from benchmarks.zoo.shapes import tiny_config

    model = AutoModelForCausalLM.from_config(tiny_config("gemma3n_text"))
    unfit = unfit_layers(model, lora())
    assert [name for name in unfit if name.endswith("altup.correction_coefs")]
    assert not [name for name in unfit if name.endswith("q_proj")]
