"""What sizes by name get wrong, family by family: settings that have to fit each other."""

from __future__ import annotations

from typing import Any

from orpo_dist.models.kinds import BOTH_WAYS

HEADS = {"head_dim": 16}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
BLT = {"hidden_size": 32, "vocab_size": 260, "num_attention_heads": 2, "num_key_value_heads": 2}
DOTS3 = {
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16, "swa_head_dim": 24, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16,
    "sliding_window": 16, "head_dim": 24,
}  # fmt: skip
INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}  # fmt: skip

PATCHES: dict[str, dict[str, Any]] = {
    **{name: {"is_decoder": True} for name in BOTH_WAYS},
    "blt": {
        "vocab_size": 260, "local_attention_window_len": 16,
        "patcher_config": BLT | {"sliding_window": 16},
        "encoder_config": BLT | {"hidden_size_global": 64},
        "decoder_config": BLT | {"hidden_size_global": 64},
        "global_config": {"hidden_size": 64},
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dbrx": {"ffn_config": {"moe_top_k": 2}, "attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {
        "text_config": DOTS3,
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "dots3_note_text": DOTS3,
    "gemma3n_text": {"intermediate_size": 64, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
                     "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_text": {"global_head_dim": 32},
    "gemma4": {"text_config": {"global_head_dim": 32}},
    "gemma4_unified_text": {"global_head_dim": 32},
    "gemma4_unified": {"text_config": {"global_head_dim": 32}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": HEADS,
    "hunyuan_v1_moe": HEADS | {"num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "longcat_flash": {"head_dim": 8, "qk_head_dim": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "mamba2": {"num_heads": 8},
    "ministral": HEADS,
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "xmod": {"is_decoder": True, "languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 128, "attention_head_dim": 32, "mamba_dt_rank": 4,
        "layers_block_type": HYBRID, "num_hidden_layers": 4,
    },
    "zamba2": {"layers_block_type": HYBRID, "num_hidden_layers": 4},
}  # fmt: skip
