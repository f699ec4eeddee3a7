"""A tiny config of any family of transformers: its own class, its own kinds of layers, few numbers.

Sizes are recognised by name; what is computed from them the class computes itself. Windows, chunks
and the like become ``REACH`` tokens, so that a few dozen tokens go past them. Dropout stays as the
family has it by default.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

REACH = 16  # tokens of a window, a chunk, a top-k of positions
WORDS = 320  # of the vocabulary; the tokenizer has 259
CONTEXT = 512

# By name: the first that fits wins. A value is never made larger.
SIZES: tuple[tuple[str, int], ...] = (
    (r"^(unpadded_|decoder_)?vocab_size(_per_layer_input)?$", WORDS),
    (r"^(num_codebooks|encoder_hash_byte_group_vocab|ngram_vocab_size_base)$", WORDS),
    (r"^(shape|pronunciation|task_type)_vocab_size$", 24),
    (r"^(num_)?(hidden|decoder|encoder|num)_layers$|^n_layers?$|^num_blocks$|^depth$", 2),
    (r"^num_layers_per_stack$", 1),
    (r"^num_(decoder|encoder)_layers$", 2),
    (r"^(qk_nope|v|linear|linear_key|linear_value|index|swa|mamba|rope)?_?head_dim$", 16),
    (r"^(dim_head|kv_channels|attention_head_size|d_kv|qkv_dim)$", 16),
    (r"^qk_rope_head_dim$", 8),
    (r"^rotary_dim$", 8),
    (r"lora_rank$|_lowrank$|^(laurel_rank|adapter_rank|gated_norm_rank)$", 16),
    (r"^(num|n|swa_num|decoder|encoder|num_decoder|num_encoder)_?(attention_)?heads?$", 4),
    (r"^(attention_heads|linear_num_heads|linear_num_value_heads)$", 4),
    (r"^index_n_heads$", 32),  # with a few, ReLU makes ties that a top-k breaks by the length
    (r"^linear_num_key_heads$", 2),
    (r"^(num_|n_)?(shared_)?experts_per_tok(en)?$|^moe_(k|topk)$|^num_experts_per_tok$", 2),
    (r"^(num_|moe_num_|n_)?(local_|routed_)?experts$|^zero_expert_num$", 4),
    (r"^(n_group|topk_group|num_expert_group)$", 1),
    (r"^first_k_dense_replace$|^num_dense_layers$", 1),
    (r"^(moe|expert|shared|dense|ffn|decoder|encoder|d)?_?(shared_)?(experts?_)?"
     r"(intermediate|ffn|ffn_hidden|feed_forward)_(size|dim)(_mlp)?$", 64),
    (r"^(dff|dim_ff|d_inner|ffn_dim|moe_shared_expert_intermediate_size)$", 64),
    (r"^shared_experts_intermediate_size$", 64),
    (r"^(hidden_size|d_model|n_embd|emb_dim|embedding_dim|hidden_dim)$", 64),
    (r"^(word_embed_proj_dim|embedding_size|lru_width|input_embedding_size)$", 64),
    (r"^(backbone_hidden_size|attention_hidden_size|output_embedding_size)$", 64),
    (r"^(hidden_size_per_layer_input|ple_embed_dim|router_hidden_size)$", 16),
    (r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length)$", CONTEXT),
    (r"^(context_length|max_target_positions|max_source_positions)$", CONTEXT),
    (r"window(_size|_len)?$|^attention_chunk_size$|^local_attention$|^index_topk$", REACH),
    (r"^(floor_scale|log_scaling_n_floor|rel_extent|keep_window_size)$", REACH),
    (r"chunk_size$|chunk_length$", REACH),
    (r"^(ssm_|mamba_d_)?state(_size)?$|^time_step_rank$|^mamba_dt_rank$", 8),
    (r"^n_groups$|^mamba_n_?groups$", 1),
)  # fmt: skip
UNTOUCHED = re.compile(r"chunk_size_feed_forward|chunk_size_lm_head|_token_id$")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads")
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tiny_config(name: str) -> Any:
    """A config of the family, small enough to train in a second."""
    from transformers import CONFIG_MAPPING

    from benchmarks.zoo.patches import PATCHES

    return _tiny(CONFIG_MAPPING[name], PATCHES.get(name, {}))


def _tiny(kind: Any, patch: dict[str, Any]) -> Any:
    inner = {key: value for key, value in patch.items() if key in kind.sub_configs}
    patch = {key: value for key, value in patch.items() if key not in inner}
    default = kind(**patch.pop("_default", {}))
    settings = _sizes(default) | _layers(default, patch)
    for part, its_kind in kind.sub_configs.items():
        held = getattr(default, part, None)
        if part in inner and inner[part] is None:
            settings[part] = None
        elif held is not None or part in inner:
            small = _tiny(type(held) if held is not None else its_kind, inner.get(part, {}))
            settings[part] = small.to_dict()
            settings[part] = {
                k: v for k, v in settings[part].items() if k != "transformers_version"
            }
    if hasattr(default, "vocab_size") or "text_config" not in kind.sub_configs:
        settings |= TOKENS
    return kind(**(settings | patch))


def _settable(default: Any) -> set[str]:
    """Names that are settings, and not computed from others."""
    return {field.name for field in dataclasses.fields(default)} | set(
        default.attribute_map.values()
    )


def _sizes(default: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    known = _settable(default)
    for name, value in vars(default).items():
        counts = isinstance(value, int) and not isinstance(value, bool)
        if not counts or name not in known or UNTOUCHED.search(name):
            continue
        for pattern, small in SIZES:
            if re.search(pattern, name):
                found[name] = min(value, small)
                break
    heads = vars(default).get("num_attention_heads")
    for name in KEY_HEADS:
        if isinstance(keys := vars(default).get(name), int):
            found[name] = 4 if keys == heads else min(keys, 2)
    return found


def _layers(default: Any, patch: dict[str, Any]) -> dict[str, Any]:
    """As many layers as there are kinds of them, and the lists that say which is which."""
    many = vars(default).get("num_hidden_layers")
    known = _settable(default) - set(patch)
    lists = {
        name: list(value)
        for name, value in vars(default).items()
        if isinstance(value, list | tuple) and len(value) == many and name in known
    }
    if not lists or "num_hidden_layers" in patch:
        return {}
    kinds: dict[str, int] = {}
    for at in range(many):
        kinds.setdefault(repr([value[at] for value in lists.values()]), at)
    kept = sorted(kinds.values())[:4]
    if len(kept) == 1:
        kept = kept * 2
    return {"num_hidden_layers": len(kept)} | {
        name: [value[at] for at in kept] for name, value in lists.items()
    }
