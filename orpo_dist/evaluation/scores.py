"""Scores of every pair of a data set, shared out over the processes of a launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from orpo_dist.base.types import Pair, PairScores, UserError
from orpo_dist.batching.steps import StepPlan
from orpo_dist.data import PairDataset
from orpo_dist.engines.allocator import keep_freed_memory
from orpo_dist.engines.runtime import ALONE, Runtime
from orpo_dist.scoring.objective import log_odds_ratio
from orpo_dist.scoring.scorer import Scorer, make_scorer

SCORED = ("chosen_logp", "rejected_logp", "nll_sum")


@dataclass(frozen=True)
class ScoreTable:
    """What a model says of N pairs; arrays of shape (N,), in the order of the data.

    chosen_logp, rejected_logp: mean log-prob per answer token, end token included (nats).
    nll_sum: summed negative log-likelihood of the chosen answer (nats).
    log_odds: log odds ratio of chosen over rejected (arXiv 2403.07691, eq. 5).
    chosen_tokens, rejected_tokens: lengths of the answers.
    """

    chosen_logp: np.ndarray
    rejected_logp: np.ndarray
    nll_sum: np.ndarray
    log_odds: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, scores: dict[str, np.ndarray]) -> ScoreTable:
        """lengths: (N, 3). scores: the arrays named in ``SCORED``."""
        chosen, rejected = (torch.from_numpy(scores[f"{x}_logp"]) for x in ("chosen", "rejected"))
        return cls(
            **scores,
            log_odds=log_odds_ratio(chosen, rejected).numpy(),
            chosen_tokens=lengths[:, 1],
            rejected_tokens=lengths[:, 2],
        )

    def __len__(self) -> int:
        return len(self.chosen_logp)

    @property
    def margin(self) -> np.ndarray:
        return self.chosen_logp - self.rejected_logp

    @property
    def correct(self) -> np.ndarray:
        return self.chosen_logp > self.rejected_logp

    def only(self, rows: np.ndarray) -> ScoreTable:
        """The rows of a mask or of indices."""
        return ScoreTable(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def refuse_nan(table: ScoreTable, name: object) -> None:
    """``UserError`` where a model has no opinion: its training has diverged."""
    lost = ~np.isfinite(table.margin)
    if lost.any():
        raise UserError(
            f"{name}: {lost.sum()} of {len(table)} pairs score NaN; its weights are not finite"
        )


def score_dataset(
    model: Any,
    pairs: PairDataset,
    batch_size: int = 4,
    progress: bool = True,
    attention: str = "auto",
    token_budget: int | None = None,
    here: Runtime = ALONE,
) -> ScoreTable:
    """Score every pair once with a model of transformers.

    batch_size, token_budget: most pairs and tokens per forward pass. here: who shares the work.
    """
    scorer = make_scorer(model, attention)
    model.eval()

    def score(some: list[Pair]) -> PairScores:
        return scorer.score(model, scorer.collate(some).to(model.device))

    if model.device.type == "cpu":
        keep_freed_memory()
    return score_pairs(score, pairs, scorer, batch_size, token_budget, here, progress)


@torch.no_grad()
def score_pairs(
    score: Callable[[list[Pair]], PairScores],
    pairs: PairDataset,
    scorer: Scorer,
    batch_size: int,
    token_budget: int | None = None,
    here: Runtime = ALONE,
    progress: bool = True,
) -> ScoreTable:
    """Score every pair once; the processes of a launch share the work, and all get all scores.

    score: the scores of a micro-batch. Micro-batches are the same on any number of processes, and
    with them the scores.
    """
    scores = {name: np.zeros(len(pairs)) for name in SCORED}
    shown = None if progress and here.is_main else True
    with tqdm(total=len(pairs), desc="scoring", unit=" pairs", disable=shown) as bar:
        for number, indices in enumerate(_micro_batches(pairs, scorer, batch_size, token_budget)):
            if number % here.world_size == here.rank:
                found = score([pairs[index] for index in indices])
                for name in SCORED:
                    scores[name][indices] = getattr(found, name).double().cpu().numpy()
            bar.update(len(indices))
    return ScoreTable.of(pairs.lengths, {name: here.sum(scores[name]) for name in SCORED})


def _micro_batches(
    pairs: PairDataset, scorer: Scorer, batch_size: int, token_budget: int | None
) -> Iterator[list[int]]:
    """Longest pairs first, so that memory runs out at once or never."""
    plan = StepPlan(
        pairs.lengths,
        pairs.lengths[:, 1],
        global_batch=batch_size,
        micro_batch=batch_size,
        token_budget=token_budget,
        padded=scorer.padded,
        repeated=scorer.repeated(pairs.lengths),
    )
    for step in plan.in_order():
        yield from (list(micro_batch) for micro_batch in step.micro_batches)
