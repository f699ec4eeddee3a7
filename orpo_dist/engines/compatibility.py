"""Combinations of engine and settings that cannot work, refused before any weight is loaded.

Every refusal was tried, or read in the code of the library it comes from.
"""

from __future__ import annotations

import math

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.engine import Engine

# Optimizers that compute on torch's sharded tensors; the others want plain ones.
FSDP2_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")

# Optimizers that DeepSpeed has for the host; accelerate quietly puts Adam in the place of others.
OFFLOAD_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adagrad")


def refuse_impossible(config: ORPOConfig, engine: Engine) -> None:
    """Raise ``UserError`` for settings that this engine cannot serve, with what to use instead."""
    if engine.shards_weights and config.quantization == "int8":
        raise UserError(
            f"quantization int8: {engine.name} cannot shard int8 weights; use int4, or the engines "
            "ddp or zero2"
        )
    if config.lora_dtype != "float32" and (engine.deepspeed or engine.name == "fsdp2"):
        raise UserError(
            f"lora_dtype {config.lora_dtype}: {engine.name} updates weights in fp32 whatever they "
            "were loaded in, and computes in bf16 anyhow; leave it out, or use the engine ddp"
        )
    if engine.name == "fsdp2" and config.optimizer not in FSDP2_OPTIMIZERS:
        raise UserError(
            f"optimizer {config.optimizer}: does not work on the shards of fsdp2; use one of "
            f"{', '.join(FSDP2_OPTIMIZERS)}, or the engine zero3"
        )
    offloads = engine.deepspeed and engine.offload != "none"
    if offloads and config.optimizer not in OFFLOAD_OPTIMIZERS:
        raise UserError(
            f"optimizer {config.optimizer}: DeepSpeed cannot offload it; use one of "
            f"{', '.join(OFFLOAD_OPTIMIZERS)}, or a preset without offload"
        )


def accumulation(config: ORPOConfig, world_size: int) -> int:
    """Micro-batches per rank and step; as many as ``global_batch_size`` needs where it is set.

    It need not divide: a run that goes on on other processes keeps its step, and ranks then have
    unequal numbers of pairs. Ranks that share a sequence have the same micro-batches.
    """
    if config.global_batch_size is None:
        return config.gradient_accumulation
    ranks = world_size // config.ranks_per_sequence
    return math.ceil(config.global_batch_size / (config.batch_size * ranks))
