"""How well models tell chosen from rejected, read text, and compare with each other."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_dist.evaluation.evaluate import evaluate_model, evaluate_models
    from orpo_dist.evaluation.scores import ScoreTable, score_dataset
    from orpo_dist.evaluation.statistics import summarise
    from orpo_dist.evaluation.terminal import format_evaluation

# Loaded on first use: the flags of the command line must not load torch.
_HOMES = {
    "ScoreTable": "scores",
    "evaluate_model": "evaluate",
    "evaluate_models": "evaluate",
    "format_evaluation": "terminal",
    "score_dataset": "scores",
    "summarise": "statistics",
}

__all__ = [
    "ScoreTable",
    "evaluate_model",
    "evaluate_models",
    "format_evaluation",
    "score_dataset",
    "summarise",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"orpo_dist.evaluation.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'orpo_dist.evaluation' has no attribute '{name}'")
