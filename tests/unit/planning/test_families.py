"""Plans of all kinds of architectures: mixtures of experts, layers that differ, none to trace."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from benchmarks.zoo.shapes import tiny_config
from orpo_dist.config import ORPOConfig
from orpo_dist.planning.data import stated
from orpo_dist.planning.estimate import Estimator, Machine
from orpo_dist.planning.layers import depths
from orpo_dist.planning.plan import Planner
from orpo_dist.planning.skeleton import Method
from orpo_dist.planning.speed import Rates
from orpo_dist.planning.terminal import budget, heading

QWEN3_30B = {
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 4, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
}  # fmt: skip


def planner(hf_config: Any, **settings: Any) -> Planner:
    config = ORPOConfig(max_prompt_length=32, max_completion_length=32, **settings)
    estimator = Estimator(hf_config, config, Machine(1, 80.0), (32, 32, 32), partial=True)
    return Planner(estimator, stated(config, hf_config, None, None), Rates(1e12, 1.0))


@pytest.mark.parametrize("peft", [False, True])
def test_a_mixture_of_experts_is_planned(peft: bool) -> None:
    """On the CPU's fake tensors torch multiplies groups in bf16 alone."""
    plan = planner(transformers.Qwen3MoeConfig(**QWEN3_30B), target_modules="q_proj,v_proj")
    found = plan.candidate(Method(peft=peft), "single", False)
    assert plan.estimator.untraced == ""
    assert found.time is not None
    parts = {part.name: part.bytes for part in found.parts}
    assert parts["activations"] > 0 or not peft
    census = plan.estimator.census(Method())
    assert census.total == pytest.approx(30.53e9, rel=1e-3)  # as published: 30.5B and 3.3B
    assert census.active == pytest.approx(3.35e9, rel=1e-2)
    assert "30.5B parameters (3.35B active for a token)" in heading(plan)


@pytest.mark.parametrize("family", ["gemma4_text", "mamba", "xlstm", "blt", "dots3_note_text"])
def test_sizes_do_not_stop_a_plan(family: str) -> None:
    """Configs with sizes layer by layer, under other names, or without any heads."""
    config = tiny_config(family)
    plan = planner(config)
    assert plan.candidate(Method(), "single", False).parts
    assert plan.estimator.census(Method()).hidden


def test_what_does_not_run_packed_is_traced_padded() -> None:
    plan = planner(tiny_config("deepseek_v32"))
    assert plan.candidate(Method(), "single", False).parts
    assert plan.estimator.untraced == ""


def test_what_cannot_be_traced_leaves_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("reads a value")

    monkeypatch.setattr("orpo_dist.planning.estimate.micro_batch_bytes", fails)
    plan = planner(tiny_config("llama"))
    found = plan.candidate(Method(), "single", False)
    parts = {part.name: part for part in found.parts}
    assert parts["weights"].bytes > 0
    assert parts["activations"].how.startswith("not known")
    assert (found.pairs, found.why_not) == (1, "")
    assert "cannot be run without data (reads a value)" in heading(plan)
    assert "nothing is known of its activations" in budget(plan, found)


def test_a_budget_is_not_made_of_the_arithmetic_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("reads a value")

    monkeypatch.setattr("orpo_dist.planning.estimate.micro_batch_bytes", fails)
    plan = planner(tiny_config("llama"))
    plan.estimator.partial = False
    with pytest.raises(RuntimeError, match="reads a value"):
        plan.candidate(Method(), "single", False)


def test_presets_without_checkpointing_are_named() -> None:
    found = planner(tiny_config("ctrl")).candidate(Method(), "single", True)
    assert found.why_not.startswith("gradient_checkpointing: CTRLLMHeadModel has none")


# --- layers that differ


def test_depths_end_with_whole_patterns() -> None:
    assert depths("aaaaaaaa") == (2, 3)
    assert depths("aaabbbbbbbb") == (4, 5)  # dense ones first
    assert depths("aaab" * 5) == (4, 8)
    assert depths("aaab" * 5 + "aa") == (4, 8)  # the end cut off
    assert depths("xaaab" + "aaab" * 5) == (5, 9)
    assert depths("abc") is None
    assert depths("a") is None
    assert depths("aabbaababbababcde") is None  # no pattern


MIXED = {
    "dense layers first": ("deepseek_v3", {"first_k_dense_replace": 3, "num_hidden_layers": 10}),
    "windows": ("gemma3_text", {
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 3,
        "num_hidden_layers": 12, "sliding_window": 16,
    }),
    "shared keys": ("gemma3n_text", {
        "layer_types": ["sliding_attention", "full_attention"] * 6, "num_hidden_layers": 12,
        "num_kv_shared_layers": 6, "intermediate_size": 64,
        "activation_sparsity_pattern": [0.95] * 2 + [0.0] * 10,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_few_layers_tell_of_all(
    name: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, changed = MIXED[name]
    shape = tiny_config(family).to_dict() | changed
    config = transformers.CONFIG_MAPPING[family].from_dict(shape)
    few = planner(config).estimator
    assert few.depths(Method(), False) is not None
    from_few = few.activations(Method(), False, checkpointing, 1)
    assert few.untraced == ""
    monkeypatch.setattr("orpo_dist.planning.estimate.depths", lambda kinds: None)
    whole = planner(config).estimator.activations(Method(), False, checkpointing, 1)
    assert from_few == pytest.approx(whole, rel=0.01)


def test_attention_sinks_are_planned_as_they_are_trained() -> None:
    """Packed, through the kernel: what it keeps for a head and a token is a number more."""

    def traced(family: str) -> int:
        config = ORPOConfig(max_prompt_length=32, max_completion_length=32, attention="packed")
        estimator = Estimator(tiny_config(family), config, Machine(1, 80.0), (32, 32, 32))
        return estimator.activations(Method(), False, False, 2)

    assert traced("gpt_oss") > 0
