"""Which of several answers wins, from what every member thinks of every answer. Pure NumPy.

``scores[m, k]`` is member m's mean log-prob per token of answer k. vote: the answer that the
members together score highest. best_of: the answer of which any one member is surest. Ties go to
the earlier answer, and answers stand in the order of the members.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Method = Literal["vote", "best_of"]
Criterion = Literal["logp", "odds"]

EDGE = -1e-9  # log-probs above it are taken for it, so that odds stay finite


def log_odds(logps: np.ndarray) -> np.ndarray:
    """log p / (1 - p) of log-probs, finite also at p = 1."""
    inside = np.minimum(logps, EDGE)
    return inside - np.log(-np.expm1(inside))


def criterion_scores(scores: np.ndarray, criterion: Criterion) -> np.ndarray:
    """What members are compared by, (M, K).

    logp: the mean log-prob as it is. odds: the log odds of an answer over the mean log odds of the
    others, so that a member which is sure of everything counts no more than the rest.
    """
    if criterion == "logp":
        return scores
    odds = log_odds(scores)
    others = odds.shape[1] - 1
    if others == 0:
        return odds
    return odds - (odds.sum(1, keepdims=True) - odds) / others


def total_scores(
    scores: np.ndarray, weights: np.ndarray, method: Method, criterion: Criterion = "logp"
) -> np.ndarray:
    """What the ensemble thinks of every answer, (K,). weights: (M,), sum 1."""
    judged = criterion_scores(scores, criterion)
    return weights @ judged if method == "vote" else judged.max(0)


def winner(
    scores: np.ndarray, weights: np.ndarray, method: Method, criterion: Criterion = "logp"
) -> int:
    """The answer that wins."""
    return int(np.argmax(total_scores(scores, weights, method, criterion)))
