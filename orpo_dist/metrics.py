"""Means of a log interval or an evaluation, under this toolkit's names and TRL's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orpo_dist.types import StepMetrics

# Order of the entries of a means vector; rewards are alpha · logp, with alpha as it then was.
SUMS = ("nll", "odds_loss", "log_odds", "chosen_logp", "rejected_logp", "correct")
MEANS = ("loss", *SUMS, "chosen_reward", "rejected_reward")


def step_means(
    loss: Tensor,
    metrics: StepMetrics,
    orpo_alpha: float,
    total_pairs: float,
    total_nll_tokens: float,
) -> Tensor:
    """A micro-batch's contribution to the step's means, (9,); contributions add up.

    loss: its share of the objective, already divided by the step's counts.
    """
    totals = [total_nll_tokens] + [total_pairs] * 5
    means = [getattr(metrics, n).double() / total for n, total in zip(SUMS, totals, strict=True)]
    rewards = [orpo_alpha * means[SUMS.index(name)] for name in ("chosen_logp", "rejected_logp")]
    return torch.stack([loss.detach().double(), *means, *rewards])


def named_metrics(means: Iterable[float]) -> dict[str, float]:
    """Metrics by name from the means.

    ``loss/orpo`` is whatever ``compute_objective`` returns. ``rewards/*`` are alpha · logp as in
    TRL; accuracy is taken from log-probs, so that it says something at alpha = 0 too. ``nll_loss``,
    ``log_odds_ratio`` and ``log_odds_chosen`` are TRL's names for values that stand here under our
    own.
    """
    loss, nll, odds_loss, log_odds, chosen, rejected, correct, won, lost = means
    return {
        "loss/orpo": loss,
        "loss/sft": nll,
        "loss/odds_ratio": odds_loss,
        "rewards/margins": won - lost,
        "rewards/accuracies": correct,
        "rewards/chosen": won,
        "rewards/rejected": lost,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "logps/margins": chosen - rejected,
        "log_odds": log_odds,
        "nll_loss": nll,
        "log_odds_ratio": -odds_loss,
        "log_odds_chosen": log_odds,
    }


@dataclass
class RunningMeans:
    """Accumulates means on the device; read and reset once per log interval."""

    total: Tensor | None = None
    steps: int = 0

    def add(self, contribution: Tensor) -> None:
        self.total = contribution if self.total is None else self.total + contribution

    def pop(self, accelerator: Any) -> list[float]:
        """The means over the steps added, summed over ranks (one all-reduce); starts afresh."""
        assert self.total is not None and self.steps
        summed = accelerator.reduce(self.total, reduction="sum")
        means = (summed / self.steps).tolist()
        self.total, self.steps = None, 0
        return means
