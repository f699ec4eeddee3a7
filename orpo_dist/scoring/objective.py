"""The ORPO objective as one pure function of per-pair scores (Hong et al. 2024, arXiv 2403.07691).

``logp`` is the mean log-probability of an answer's tokens, ``odds = p / (1 - p)`` with
``p = exp(logp)``, and ``L_OR = -log sigmoid(log odds(chosen) - log odds(rejected))``  (eq. 4-7).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from orpo_dist.base.types import PairScores, StepMetrics

LossForm = Literal["additive", "convex"]

# From here up to logp = 0 the odds run to infinity; log(1 - p) goes on along its tangent instead,
# so that its value stays finite and its slope below 1 / EDGE. Exact for every p < 0.9999.
EDGE = 1e-4
SLOPE = 1.0 / math.expm1(EDGE)


def log1mexp(logp: Tensor) -> Tensor:
    """``log(1 - exp(logp))`` for ``logp <= 0``: finite, with finite gradients, at every input."""
    inside = logp.clamp(max=-EDGE)
    return torch.log(-torch.expm1(inside)) - SLOPE * (logp - inside)


def log_odds_ratio(chosen_logp: Tensor, rejected_logp: Tensor) -> Tensor:
    """Log odds ratio of chosen over rejected (paper, eq. 5), in fp32 or better, shape (B,)."""
    chosen, rejected = (
        logp if logp.dtype == torch.float64 else logp.float()
        for logp in (chosen_logp, rejected_logp)
    )
    return (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))


def mix(
    sft: Tensor | float, odds: Tensor | float, orpo_alpha: float, loss_form: LossForm
) -> Tensor | float:
    """``L_SFT + alpha L_OR``, or ``(1 - alpha) L_SFT + alpha L_OR`` for the convex form."""
    sft_weight = 1.0 if loss_form == "additive" else 1.0 - orpo_alpha
    return sft_weight * sft + orpo_alpha * odds


def orpo_loss(
    scores: PairScores,
    orpo_alpha: float,
    loss_form: LossForm = "additive",
    total_pairs: Tensor | float | None = None,
    total_nll_tokens: Tensor | float | None = None,
) -> tuple[Tensor, StepMetrics]:
    """This micro-batch's share of the loss of an optimizer step.

    total_pairs, total_nll_tokens: counts of the *whole* step, over all micro-batches and ranks.
    Sums are divided by them once, so adding up the shares gives the same loss however the step
    was cut. Default: the counts of these scores alone.
    Returns the 0-d loss and detached sums for the logs.
    """
    weight = scores.weight.to(torch.promote_types(scores.chosen_logp.dtype, torch.float32))
    log_odds = log_odds_ratio(scores.chosen_logp, scores.rejected_logp)
    odds_loss = -(weight * F.logsigmoid(log_odds)).sum()
    nll = (weight * scores.nll_sum).sum()
    pairs, nll_tokens = weight.sum(), (weight * scores.nll_tokens).sum()
    loss = mix(
        nll / (nll_tokens if total_nll_tokens is None else total_nll_tokens),
        odds_loss / (pairs if total_pairs is None else total_pairs),
        orpo_alpha,
        loss_form,
    )
    assert isinstance(loss, Tensor)
    metrics = StepMetrics(
        pairs=pairs,
        nll_tokens=nll_tokens,
        nll=nll.detach(),
        odds_loss=odds_loss.detach(),
        log_odds=(weight * log_odds).sum().detach(),
        chosen_logp=(weight * scores.chosen_logp).sum().detach(),
        rejected_logp=(weight * scores.rejected_logp).sum().detach(),
        correct=(weight * (scores.chosen_logp > scores.rejected_logp)).sum().detach(),
    )
    return loss, metrics
