"""Families of causal language models that transformers knows, each as a tiny random model."""

from __future__ import annotations

from typing import Any

# Sizes by the name of the setting, where a family has it; all else stays as its config has it.
SIZES = {
    "vocab_size": 160, "hidden_size": 64, "n_embd": 64, "d_model": 64, "dim": 64, "emb_dim": 64,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "ffn_hidden_size": 48,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "decoder_ffn_dim": 48,
    "shared_intermediate_size": 24, "expert_ffn_hidden_size": 24, "dim_ff": 48,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2,
    "encoder_layers": 1, "encoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "decoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "n_group": 1,
    "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 16, "max_position_embeddings": 128,
    "num_hidden_layers_wanted": 2,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
FULL = ["full_attention"] * 2
OWN: dict[str, dict[str, Any]] = {
    "bamba": MAMBA, "granitemoehybrid": MAMBA,
    "codegen": {"rotary_dim": 8}, "gptj": {"rotary_dim": 8},
    "mamba2": {"num_heads": 8, "n_groups": 1, "state_size": 8},
    "zamba2": {"n_mamba_heads": 8, "mamba_headdim": 16, "mamba_ngroups": 1, "mamba_d_state": 8},
    "lfm2_moe": {"layer_types": FULL},
    "nemotron": {"num_key_value_heads": 2},
    "dots1": {"moe_intermediate_size": 24, "n_shared_experts": 1, "intermediate_size": 48},
    "hunyuan_v1_dense": {"head_dim": 16}, "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
}  # fmt: skip


def causal_types() -> list[str]:
    """Model types of transformers' causal language models."""
    from transformers import AutoModelForCausalLM

    return sorted({config.model_type for config in AutoModelForCausalLM._model_mapping})


def small_config(kind: str, **changes: Any) -> Any:
    """The config of a tiny model of a type. Raises what its class raises."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    known = set(made.__dataclass_fields__) | set(getattr(made, "attribute_map", {}))
    sizes = {name: size for name, size in SIZES.items() if name in known}
    if "qk_rope_head_dim" in known:
        sizes.pop("head_dim", None)
    tokens = {
        n: 1
        for n in known
        if n.endswith("token_id") and n in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    config = made(**{**sizes, **tokens, **OWN.get(kind, {}), **changes})
    return config
