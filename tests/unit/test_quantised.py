"""Quantised bases: what they hold while they train, and that they are judged as they were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from orpo_dist.config import ORPOConfig
from orpo_dist.model import load_policy
from orpo_dist.planning.skeleton import Method, build, quantised_weights
from orpo_dist.trainer import ORPOTrainer

KINDS = ("int4", "int8")


@pytest.mark.parametrize("quantization", KINDS)
def test_what_is_not_quantised_stays_in_the_compute_precision(
    tiny_model_dir: Path, quantization: str
) -> None:
    """Embeddings, norms and head as under plain LoRA, and as the plan counts them."""
    config = ORPOConfig(model=str(tiny_model_dir), peft=True, mixed_precision="bf16")
    plain = load_policy(config).state_dict()
    model = load_policy(config.replace(quantization=quantization))
    shape = AutoConfig.from_pretrained(tiny_model_dir)
    planned = build(shape, config, Method(True, quantization), "bf16")
    bits = {id(weight) for weight in quantised_weights(planned)}
    others = {name: p.dtype for name, p in planned.named_parameters() if id(p) not in bits}
    assert others["base_model.model.lm_head.weight"] == torch.bfloat16
    held = dict(model.named_parameters())
    for name, dtype in others.items():
        assert held[name].dtype == plain[name].dtype == dtype, name
        assert held[name].requires_grad == ("lora_" in name)


@pytest.mark.parametrize("quantization", KINDS)
def test_checkpointing_reaches_the_first_layer_of_a_quantised_base(
    tiny_model_dir: Path, demo_rows: Any, tmp_path: Path, quantization: str
) -> None:
    def run(**changes: Any) -> ORPOTrainer:
        config = ORPOConfig(
            project_name=str(tmp_path), peft=True, quantization=quantization, max_steps=2,
            lr=1e-2, logging_steps=1, log="none", save_strategy="no", **changes,
        )  # fmt: skip
        trainer = ORPOTrainer(str(tiny_model_dir), config, demo_rows[:8])
        trainer.train()
        return trainer

    plain, checkpointed = run(), run(gradient_checkpointing=True)
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    one, two = (dict(t.model.named_parameters())[first] for t in (plain, checkpointed))
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
