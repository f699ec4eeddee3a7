"""Means of a log interval or an evaluation, under this toolkit's names and TRL's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orpo_dist.objective import LossForm, mix
from orpo_dist.types import StepMetrics

# Order of the entries of a means vector.
MEANS = ("nll", "odds_loss", "log_odds", "chosen_logp", "rejected_logp", "correct")


def step_means(metrics: StepMetrics, total_pairs: float, total_nll_tokens: float) -> Tensor:
    """A micro-batch's contribution to the step's means, (6,); contributions add up."""
    totals = [total_nll_tokens] + [total_pairs] * 5
    return torch.stack([
        getattr(metrics, name).double() / total for name, total in zip(MEANS, totals, strict=True)
    ])  # fmt: skip


def named_metrics(
    means: Iterable[float], orpo_alpha: float, loss_form: LossForm
) -> dict[str, float]:
    """Metrics by name from the six means.

    ``rewards/*`` are alpha · logp as in TRL; accuracy is taken from log-probs, so that it says
    something at alpha = 0 too. ``nll_loss``, ``log_odds_ratio`` and ``log_odds_chosen`` are TRL's
    names for values that stand here under our own.
    """
    nll, odds_loss, log_odds, chosen, rejected, correct = means
    return {
        "loss/orpo": float(mix(nll, odds_loss, orpo_alpha, loss_form)),
        "loss/sft": nll,
        "loss/odds_ratio": odds_loss,
        "rewards/margins": orpo_alpha * (chosen - rejected),
        "rewards/accuracies": correct,
        "rewards/chosen": orpo_alpha * chosen,
        "rewards/rejected": orpo_alpha * rejected,
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
