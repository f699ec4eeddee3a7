"""orpo_dist: fast, exact, distributed ORPO fine-tuning.

>>> from orpo_dist import ORPOConfig, train
>>> model = train(ORPOConfig(model="folder-or-hub-id", data_path=["pairs.jsonl"]))
>>> model.generate("How do I boil an egg?")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_dist.base.types import PairScores, StepMetrics, UserError
    from orpo_dist.batching.loader import LoadedStep
    from orpo_dist.config import ORPOConfig, build_config, load_config
    from orpo_dist.config.flags import add_config_flags, config_values
    from orpo_dist.ensembles import Ensemble, load_ensemble
    from orpo_dist.evaluation import evaluate_model, evaluate_models, format_evaluation
    from orpo_dist.models.trained import TrainedModel, load
    from orpo_dist.scoring.objective import log_odds_ratio, orpo_loss
    from orpo_dist.sweeps.running.driver import sweep
    from orpo_dist.sweeps.search import find_best_alpha
    from orpo_dist.training.run import train
    from orpo_dist.training.trainer import ORPOTrainer

# Here alone: pyproject.toml and "orpo-dist --version" read it.
__version__ = "0.1.0"

# Loaded on first use: naming the package must not load torch.
_HOMES = {
    "Ensemble": "ensembles",
    "LoadedStep": "batching.loader",
    "ORPOConfig": "config",
    "ORPOTrainer": "training.trainer",
    "PairScores": "base.types",
    "StepMetrics": "base.types",
    "TrainedModel": "models.trained",
    "UserError": "base.types",
    "add_config_flags": "config.flags",
    "build_config": "config",
    "config_values": "config.flags",
    "evaluate_model": "evaluation",
    "evaluate_models": "evaluation",
    "find_best_alpha": "sweeps.search",
    "format_evaluation": "evaluation",
    "load": "models.trained",
    "load_config": "config",
    "load_ensemble": "ensembles",
    "log_odds_ratio": "scoring.objective",
    "orpo_loss": "scoring.objective",
    "sweep": "sweeps.running.driver",
    "train": "training.run",
}

__all__ = [
    "Ensemble",
    "LoadedStep",
    "ORPOConfig",
    "ORPOTrainer",
    "PairScores",
    "StepMetrics",
    "TrainedModel",
    "UserError",
    "add_config_flags",
    "build_config",
    "config_values",
    "evaluate_model",
    "evaluate_models",
    "find_best_alpha",
    "format_evaluation",
    "load",
    "load_config",
    "load_ensemble",
    "log_odds_ratio",
    "orpo_loss",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"orpo_dist.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'orpo_dist' has no attribute '{name}'")
