"""transformers' models: their attention, layers and loading."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from orpo_dist.upstream.register import reaches_for

MODEL = "transformers.modeling_utils:PreTrainedModel"
CONFIG = "transformers.configuration_utils:PreTrainedConfig"
HOOK = "transformers.integrations.deepspeed"
MIXED = "transformers.integrations.heterogeneity.configuration_utils"


# --- attention


@reaches_for(
    f"{CONFIG}._attn_implementation",
    because="what attention a model runs with is to be had from its config alone",
    upstream="transformers/configuration_utils.py, PreTrainedConfig (5.23)",
    until="a model or a config says its attention by a public name",
)
def attention_of(config: Any) -> Any:
    """The name of the attention that a model of this config runs with."""
    return config._attn_implementation


@reaches_for(
    f"{CONFIG}._attn_implementation",
    because="a model is built from a config with the attention that the config says",
    upstream="transformers/configuration_utils.py, PreTrainedConfig (5.23)",
    until="a model's class takes its attention beside a config",
)
def set_attention(config: Any, name: str) -> None:
    """Let models that are made from a config run with this attention, all their parts."""
    config._attn_implementation = name


@reaches_for(
    f"{MODEL}._can_set_attn_implementation()",
    because="a model with attention of its own only logs a warning when another one is set",
    upstream="transformers/modeling_utils.py, PreTrainedModel.set_attn_implementation (5.23)",
    until="set_attn_implementation raises where it cannot",
)
def takes_attention(model: Any) -> bool:
    """Whether a model runs with whatever attention is set."""
    return bool(type(model)._can_set_attn_implementation())


# --- layers


@reaches_for(
    f"{MODEL}._no_split_modules",
    because="what FSDP2 wraps one by one is said there, by the names of classes",
    upstream="transformers/modeling_utils.py, PreTrainedModel (5.23); accelerate reads it",
    until="a model says its blocks by a public name",
)
def block_classes(model: Any) -> set[str]:
    """The names of the classes of a model's layers; empty where it does not say."""
    return set(getattr(model, "_no_split_modules", None) or ())


@reaches_for(
    "transformers.modeling_layers:GradientCheckpointingLayer@_gradient_checkpointing_func",
    because="what a recomputed layer begins with may wait in the host's memory, and what is "
    "compiled of it lies within what is recomputed",
    upstream="transformers/modeling_layers.py, GradientCheckpointingLayer (5.23)",
    until="activation_checkpointing_enable(offload=True) copies without waiting, and layers can be "
    "compiled within it",
)
class Recomputed:
    """A layer of transformers that may be recomputed in the backward pass."""

    @staticmethod
    def through(layer: Any, wrap: Callable[[Any], Any]) -> None:
        """Let the function that recomputes it run through ``wrap``."""
        layer._gradient_checkpointing_func = wrap(layer._gradient_checkpointing_func)

    @staticmethod
    def plain(layer: Any) -> Callable[..., Any]:
        """Its forward, of which nothing is recomputed."""
        return types.MethodType(type(layer).forward.__wrapped__, layer)

    @staticmethod
    def run(layer: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As the layer does it, with another forward: recomputed where it is set so."""
        if not layer.gradient_checkpointing:
            return forward(*args, **kwargs)
        return layer._gradient_checkpointing_func(functools.partial(forward, **kwargs), *args)


@reaches_for(
    f"{MIXED}:_apply_heterogeneous_config@_heterogeneity_spec",
    f"{MIXED}:_HeterogeneitySpec@per_layer_overrides",
    because="a smaller copy of a model has to change what single layers have of their own",
    upstream="transformers/integrations/heterogeneity/configuration_utils.py (5.23)",
    until="per_layer_config can be read and set on a config",
)
def layers_own(config: Any) -> list[dict[str, Any]]:
    """What single layers have in place of the config's, to be changed (Gemma 4, Dots 3)."""
    spec = getattr(config, "_heterogeneity_spec", None)
    return list(spec.per_layer_overrides.values()) if spec else []


@reaches_for(
    "transformers.integrations.moe:_grouped_mm(input, weight, offs)",
    because="torch's grouped product runs over fake tensors in bf16 alone",
    upstream="transformers/integrations/moe.py (5.23)",
    until="torch.nn.functional.grouped_mm runs over fake tensors in every precision",
)
@contextlib.contextmanager
def experts_multiply_by(product: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
    """Within it, ``product(input, weight, offsets)`` computes in place of experts' products."""
    from transformers.integrations import moe

    former = moe._grouped_mm
    moe._grouped_mm = product
    try:
        yield
    finally:
        moe._grouped_mm = former


# --- loading and generating


@reaches_for(
    f"{HOOK}:_hf_deepspeed_config_weak_ref",
    f"{HOOK}:unset_hf_deepspeed_config()",
    because="in a process of ZeRO-3 every model is dealt out as it is loaded, also small ones and "
    "those that one rank loads alone",
    upstream="transformers/integrations/deepspeed.py (5.23)",
    until="from_pretrained can be told to load a model whole",
)
@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Within it, models are loaded whole, also in a process of ZeRO-3."""
    from transformers.integrations import deepspeed as hook

    former = hook._hf_deepspeed_config_weak_ref
    hook.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hook._hf_deepspeed_config_weak_ref = former


@reaches_for(
    f"{MODEL}._supports_sdpa",
    "transformers.generation.utils:GenerationMixin._supports_default_dynamic_cache()",
    because="a model of several models makes their caches itself, and has no attention of its own",
    upstream="transformers/generation/utils.py, _prepare_cache_for_generation (5.23)",
    until="a model can bring a cache of its own by a public name",
)
class OwnCaches:
    """Mixed into a model, before transformers' classes: its ``forward`` makes the caches."""

    _supports_sdpa = True

    def _supports_default_dynamic_cache(self) -> bool:
        return False
