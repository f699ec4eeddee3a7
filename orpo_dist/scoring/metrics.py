"""Means of a log interval or an evaluation, under this toolkit's names and TRL's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from orpo_dist.base.types import PairScores, StepMetrics

# Order of the entries of a means vector; rewards are alpha · logp, with alpha as it then was.
SUMS = ("nll", "odds_loss", "log_odds", "chosen_logp", "rejected_logp", "correct")
MEANS = ("loss", *SUMS, "chosen_reward", "rejected_reward", "router")


def step_means(
    loss: Tensor,
    metrics: StepMetrics,
    orpo_alpha: float,
    total_pairs: float,
    total_nll_tokens: float,
    router: Tensor | None = None,
) -> Tensor:
    """A micro-batch's contribution to the step's means, (9,), or (10,) with the router loss.

    Contributions add up. loss, router: its share of the objective and of the router loss, already
    divided by the step's counts.
    """
    totals = [total_nll_tokens] + [total_pairs] * 5
    means = [getattr(metrics, n).double() / total for n, total in zip(SUMS, totals, strict=True)]
    rewards = [orpo_alpha * means[SUMS.index(name)] for name in ("chosen_logp", "rejected_logp")]
    last = [] if router is None else [router.detach().double()]  # none: nothing for a GPU to start
    return torch.stack([loss.detach().double(), *means, *rewards, *last])


def named_metrics(means: Iterable[float]) -> dict[str, float]:
    """Metrics by name from the means.

    ``loss/orpo`` is whatever ``compute_objective`` returns. ``rewards/*`` are alpha · logp as in
    TRL; accuracy is taken from log-probs, so that it says something at alpha = 0 too. ``nll_loss``,
    ``log_odds_ratio`` and ``log_odds_chosen`` are TRL's names for values that stand here under our
    own. ``loss/router`` is there where the router loss is trained.
    """
    loss, nll, odds_loss, log_odds, chosen, rejected, correct, won, lost, *router = means
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
    } | ({"loss/router": router[0]} if router else {})


MOST_CATEGORIES = 32  # more would bury the log
UNNAMED = "(none)"
CATEGORY_SUMS = 6


def category_sums(scores: PairScores, ids: Tensor, count: int) -> Tensor:
    """Sums over the pairs of each category, (count, 6): pairs, right ones, logps, NLL, its tokens.

    ids: (B,) category of each pair.
    """
    values = torch.stack(
        [
            torch.ones_like(scores.weight),
            (scores.chosen_logp > scores.rejected_logp).to(scores.weight.dtype),
            scores.chosen_logp.detach(),
            scores.rejected_logp.detach(),
            scores.nll_sum.detach(),
            scores.nll_tokens,
        ],
        dim=1,
    )
    weighted = values.double() * scores.weight[:, None]
    sums = torch.zeros(count, CATEGORY_SUMS, dtype=torch.float64, device=weighted.device)
    return sums.index_add_(0, ids.to(weighted.device, non_blocking=True), weighted)


def category_metrics(names: Sequence[str], sums: Sequence[Sequence[float]]) -> dict[str, float]:
    """Metrics of the categories that had pairs, under the overall names with the category's."""
    found = {}
    for name, (pairs, right, chosen, rejected, nll, tokens) in zip(names, sums, strict=True):
        if pairs:
            shown = name or UNNAMED
            found[f"rewards/accuracies/{shown}"] = right / pairs
            found[f"logps/margins/{shown}"] = (chosen - rejected) / pairs
            found[f"loss/sft/{shown}"] = nll / tokens
            found[f"pairs/{shown}"] = pairs
    return found


class RunningMeans:
    """Accumulates means on the device; read and reset once per log interval."""

    def __init__(self, categories: Sequence[str] = (), steps: int = 0):
        """categories: to be told apart; one alone, or too many, are not."""
        self.names = categories if 1 < len(categories) <= MOST_CATEGORIES else ()
        self.steps = steps
        # Never changed in place: whoever keeps it can come back to it.
        self.total: Tensor | None = None

    def add(self, means: Tensor, scores: PairScores, ids: Tensor) -> None:
        """Add a micro-batch. means: see ``step_means``; ids: (B,) categories of its pairs."""
        if self.names:
            means = torch.cat([means, category_sums(scores, ids, len(self.names)).flatten()])
        self.total = means if self.total is None else self.total + means

    def pop(self, accelerator: Any) -> dict[str, float]:
        """Metrics of the steps added, over all ranks (one all-reduce); starts afresh."""
        assert self.total is not None and self.steps
        summed = accelerator.reduce(self.total, reduction="sum")
        means = len(summed) - len(self.names) * CATEGORY_SUMS
        overall = (summed[:means] / self.steps).tolist()
        by_category = summed[means:].reshape(len(self.names), CATEGORY_SUMS).tolist()
        self.total, self.steps = None, 0
        return named_metrics(overall) | category_metrics(self.names, by_category)
