"""A small fp32 copy of a model's architecture, in which every window and switch lies within reach.

Made from the class and the config of the model, never from its weights: it costs a second for any
size, and nothing of it is rounded. Head sizes, layers and their kinds stay; heads, widths, experts
and vocabulary shrink. Windows, chunks and the lengths at which a rope changes shrink to ``REACH``.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch

from orpo_dist.scoring.model_config import parts
from orpo_dist.scoring.ropes import teach_ropes
from orpo_dist.scoring.switches import changing
from orpo_dist.upstream.deepspeed import whole_size
from orpo_dist.upstream.hf_models import attention_of, layers_own, set_attention, whole_weights

REACH = 12  # tokens; windows and switches are at most this long in a miniature
VOCABULARY, WIDTH, EXPERTS = 256, 64, 4
SMALL = 20_000_000  # parameters; a model of this size is its own miniature

WINDOWS = re.compile(r"window|attention_chunk_size|index_topk|local_attention|floor_scale")
NOT_TOKENS = re.compile(r"layers|pattern|use_")  # names like these count layers, or nothing
WIDTHS = re.compile(r"intermediate_size|ffn_dim|n_inner|(q|kv|o)_lora_rank")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_USED = ("num_experts_per_tok", "moe_k", "num_experts_per_token", "moe_topk")
GROUPS = ("n_group", "topk_group", "num_expert_group")


def miniature(core: Any) -> Any:
    """A model of the same architecture as ``core``, with random weights, on the CPU in fp32.

    Raises what the model's own class raises where it cannot be built or does not run.
    """
    failure: Exception | None = None
    shrinks = [[], [_narrow, _few], [_few]]
    for shrink in shrinks if is_small(core) else shrinks[1:]:
        config = copy.deepcopy(core.config)
        set_attention(config, _plain_attention(core.config))
        for part in parts(config):
            part.__dict__.pop("quantization_config", None)
            for change in shrink:
                change(part)
            _within_reach(part)
        try:
            return _build(type(core), config)
        except Exception as error:  # a class that ties its sizes in a way not known here
            failure = failure or error
    assert failure is not None
    raise failure


def _plain_attention(config: Any) -> str:
    """What runs on a CPU and is, beside the packed path, what the model computes."""
    return "eager" if str(attention_of(config)).endswith("eager") else "sdpa"


def is_small(core: Any) -> bool:
    """Whether a model need not be made smaller to be proved on a CPU."""
    whole = not getattr(core, "is_quantized", False)
    return whole and sum(whole_size(p) for p in core.parameters()) <= SMALL


def in_fp32(core: Any) -> Any:
    """A copy of a small model itself, whatever was done to it, on the CPU."""
    return copy.deepcopy(core).float().cpu().eval()


def _narrow(config: Any) -> None:
    """Fewer heads, of the same size, and a width to match."""
    names = ("num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")
    heads, key_heads, width, size = (_own(config, name) for name in names)
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    size = size or width // heads
    fewer_keys = min(key_heads or heads, 2)
    fewer = fewer_keys * min(heads // (key_heads or heads), 2)
    config.num_attention_heads, config.hidden_size = fewer, fewer * size
    if key_heads is not None:
        config.num_key_value_heads = fewer_keys
    for own in layers_own(config):
        for name, most in zip(names, (fewer, fewer_keys), strict=False):
            if name in own:
                own[name] = min(own[name], most)


def _own(config: Any, name: str) -> Any:
    """What a config holds by a name itself, whatever single layers have."""
    return vars(config).get(config.attribute_map.get(name, name))


def _few(config: Any) -> None:
    """Few words, few experts, thin layers between attentions."""
    for name, value in list(vars(config).items()):
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if "vocab_size" in name:
            setattr(config, name, min(value, VOCABULARY))
        elif name.endswith("token_id") and value >= VOCABULARY:
            setattr(config, name, None)
        elif WIDTHS.search(name):
            setattr(config, name, min(value, WIDTH))
        elif name in EXPERT_COUNTS:
            setattr(config, name, min(value, EXPERTS))
        elif name in EXPERTS_USED:
            setattr(config, name, min(value, EXPERTS // 2))
        elif name in GROUPS:
            setattr(config, name, 1)
    for name in ("eos_token_id", "bos_token_id"):  # may be lists
        if isinstance(getattr(config, name, None), list):
            setattr(config, name, None)


def _within_reach(config: Any) -> None:
    for name, value in list(vars(config).items()):
        counts = isinstance(value, int) and not isinstance(value, bool)
        if counts and WINDOWS.search(name) and not NOT_TOKENS.search(name):
            setattr(config, name, min(value, REACH))
    for rope, switch in list(changing(config)):
        reached = min(switch.at, REACH)
        for holder in (rope, vars(config)):
            if "original_max_position_embeddings" in holder:
                holder["original_max_position_embeddings"] = reached
        if "original_max_position_embeddings" not in rope:
            config.max_position_embeddings = reached


def _build(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), whole_weights():
        torch.manual_seed(0)
        model = kind(config).float().eval()
        teach_ropes(model)
        with torch.no_grad():
            for parameter in model.parameters():
                _draw(parameter)
            model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    return model


def _draw(parameter: torch.Tensor) -> None:
    """Random values under which every part of the model has its say in the output."""
    if parameter.dim() > 1:
        parameter.normal_(0, parameter.shape[-1] ** -0.5)
    else:
        parameter.nan_to_num_().add_(0.1 * torch.randn_like(parameter))
