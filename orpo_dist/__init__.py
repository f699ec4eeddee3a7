"""orpo_dist: fast, exact, distributed ORPO fine-tuning.

>>> from orpo_dist import ORPOConfig, train
>>> model = train(ORPOConfig(model="folder-or-hub-id", data_path=["pairs.jsonl"]))
>>> model.generate("How do I boil an egg?")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_dist.config import ORPOConfig, load_config
    from orpo_dist.ensembles import Ensemble, load_ensemble
    from orpo_dist.evaluation import evaluate_model, evaluate_models
    from orpo_dist.handle import TrainedModel, load
    from orpo_dist.objective import orpo_loss
    from orpo_dist.run import train
    from orpo_dist.sweeps.driver import sweep
    from orpo_dist.sweeps.search import find_best_alpha
    from orpo_dist.trainer import ORPOTrainer
    from orpo_dist.types import UserError

__version__ = "0.1.0"

# Loaded on first use: naming the package must not load torch.
_HOMES = {
    "ORPOConfig": "config",
    "load_config": "config",
    "Ensemble": "ensembles",
    "load_ensemble": "ensembles",
    "evaluate_model": "evaluation",
    "evaluate_models": "evaluation",
    "TrainedModel": "handle",
    "load": "handle",
    "orpo_loss": "objective",
    "train": "run",
    "sweep": "sweeps.driver",
    "find_best_alpha": "sweeps.search",
    "ORPOTrainer": "trainer",
    "UserError": "types",
}

__all__ = [
    "Ensemble",
    "ORPOConfig",
    "ORPOTrainer",
    "TrainedModel",
    "UserError",
    "evaluate_model",
    "evaluate_models",
    "find_best_alpha",
    "load",
    "load_config",
    "load_ensemble",
    "orpo_loss",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"orpo_dist.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'orpo_dist' has no attribute '{name}'")
