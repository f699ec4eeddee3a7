"""The answers of models that are compared, where no file holds them."""

from __future__ import annotations

import argparse
from typing import Any

from transformers import set_seed

from orpo_dist.base.console import quieten_libraries
from orpo_dist.config import ORPOConfig
from orpo_dist.generation.prompts import Prompt
from orpo_dist.generation.speakers import Speaker, answers
from orpo_dist.models.trained import load, run_configs


def generate(
    models: list[str], prompts: list[Prompt], options: argparse.Namespace, sampling: dict[str, Any]
) -> dict[str, list[str]]:
    """By model, its answers to the prompts; one model after the other, from the same seed."""
    quieten_libraries()

    def of(model: str, config: ORPOConfig) -> list[str]:
        speaker = Speaker(model, load(model, config, options.full_precision))
        set_seed(options.seed)
        return list(answers(speaker, prompts, options.batch_size, **sampling))

    return {m: of(m, config) for m, config in zip(models, run_configs(models), strict=True)}
