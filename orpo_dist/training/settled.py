"""A stage, settled: what its config means on this machine and for its model, decided once.

Made before any weight is loaded, and handed on to whatever trains, scores or saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orpo_dist.config import ORPOConfig
from orpo_dist.data import Encoder, limits_of, make_encoder
from orpo_dist.engines.runtime import Runtime
from orpo_dist.models.adapters import going_on
from orpo_dist.models.model import look_at
from orpo_dist.training.arguments import resolve


@dataclass(frozen=True)
class Settled:
    """config: with every default filled in. here: the processes it is for. encoder: with the length
    limits of config and model. model_config: the model's own."""

    config: ORPOConfig
    here: Runtime
    tokenizer: Any
    encoder: Encoder
    model_config: Any


def settle(
    config: ORPOConfig, model: Any, has_eval: bool, here: Runtime, tokenizer: Any = None
) -> Settled:
    """model: as in ``ORPOTrainer``. tokenizer: default, the model's own. Raises ``UserError``."""
    config = resolve(config, has_eval, here.world_size, here.engine.name)
    if model is None or isinstance(model, str):
        config = going_on(config, model)
    tokenizer, model_config, rows = look_at(model, config, tokenizer)
    limits = limits_of(config, model_config, rows)
    encoder = make_encoder(tokenizer, config, limits)
    return Settled(config, here, tokenizer, encoder, model_config)
