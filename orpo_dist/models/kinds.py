"""Which models can be trained here: those that write a text from left to right, word by word."""

from __future__ import annotations

from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.data.bounds import rows_of

# They see what comes after a token too, unless their config says is_decoder.
BOTH_WAYS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
    "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert",
    "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
# Registered with transformers as causal language models, and yet none that can be trained on text.
NOT_BY_THEMSELVES = {
    "gemma4_assistant": "drafts words from the states of another model",
    "gemma4_unified_assistant": "drafts words from the states of another model",
    "reformer": "trains on texts of one length alone, and hashes its keys by random draws",
}
OTHER_HEADS = (
    "Classification", "QuestionAnswering", "MultipleChoice", "Regression", "RewardModel",
    "ForReward", "ForPreTraining",
)  # fmt: skip
SENSES = ("vision_config", "audio_config")


def refuse_not_causal(model_config: Any, what: str) -> None:
    """``UserError`` for a model that is no causal language model. what: the model, in words."""
    if reason := _why_not_causal(model_config):
        raise UserError(
            f"{what}: {reason}; here are trained and used causal language models alone (Llama, "
            "Qwen, Mistral, GPT-2 and the like)"
        )


def _why_not_causal(config: Any) -> str:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = config.model_type or type(config).__name__
    heads = [
        name
        for name in getattr(config, "architectures", None) or ()
        if any(head in name for head in OTHER_HEADS)
    ]
    alone = NOT_BY_THEMSELVES.get(kind, "")
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if getattr(config, "is_encoder_decoder", False):
        reason = f"is an encoder-decoder model ({kind})"
    elif heads:
        reason = f"has another head than one for the next word ({heads[0]})"
    elif alone:
        reason = f"{alone} ({kind})"
    elif own_code or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        reason = f"sees a text in both directions ({kind})" if _looks_ahead(config, kind) else ""
    elif any(getattr(config, sense, None) is not None for sense in SENSES):
        reason = f"takes images or sound beside text ({kind})"
    else:
        reason = f"is no causal language model by its config.json ({kind})"
    return reason


def _looks_ahead(config: Any, kind: str) -> bool:
    if kind in BOTH_WAYS:
        return not config.is_decoder
    return kind == "xlnet" or (kind in ("xlm", "flaubert") and not config.causal)


def refuse_checkpointing(core: Any) -> None:
    """``UserError`` for a model of which transformers recomputes nothing in the backward pass."""
    if not getattr(core, "supports_gradient_checkpointing", True):
        raise UserError(
            f"gradient_checkpointing: {type(core).__name__} has none in transformers; leave it "
            "out, and save memory with peft or a lower max_tokens_per_microbatch"
        )


def embedding_rows(model: Any) -> int | None:
    """How many token ids a model in memory knows, as input and as output; None: not known."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        found = core.get_input_embeddings(), core.get_output_embeddings()
    except (NotImplementedError, AttributeError):  # a model in name only, such as an average
        return rows_of(core.config)
    # Not the weight, which may lie in shards; an adapter wraps its layer.
    layers = [getattr(layer, "base_layer", layer) for layer in found]
    sizes = [
        getattr(layer, "num_embeddings", getattr(layer, "out_features", 0)) for layer in layers
    ]
    return min((size for size in sizes if size), default=rows_of(core.config))
