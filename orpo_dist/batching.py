"""The plan: which pairs make optimizer step k, on which rank, in which micro-batch.

A step is a fixed set of pairs, chosen by (seed, epoch, global batch size) alone and only then dealt
out to ranks and micro-batches; the topology therefore never changes what a step trains on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FILLER = -1  # an index that stands for "no pair": keeps ranks in step with weight 0


@dataclass(frozen=True)
class Step:
    """One optimizer step (or evaluation batch) as one rank sees it.

    micro_batches: indices of pairs, ``FILLER`` where this rank has none; every rank has equally
    many micro-batches. total_pairs, total_nll_tokens: counts over all ranks, for normalisation.
    """

    micro_batches: tuple[tuple[int, ...], ...]
    total_pairs: int
    total_nll_tokens: int


@dataclass(frozen=True)
class Plan:
    """How N pairs are cut into steps.

    lengths: (N, 3) tokens of prompt, chosen, rejected. nll_tokens: (N,) tokens in L_SFT per pair.
    global_batch: pairs per step over all ranks. micro_batch: pairs per forward pass.
    repeats: (N,) how often a pair appears in an epoch; a fraction is its chance to appear.
    """

    lengths: np.ndarray
    nll_tokens: np.ndarray
    global_batch: int
    micro_batch: int
    world_size: int = 1
    seed: int = 0
    repeats: np.ndarray | None = None

    @property
    def pairs_per_epoch(self) -> int:
        """Pairs in one epoch; the same in every epoch."""
        if self.repeats is None:
            return len(self.lengths)
        return max(1, round(float(self.repeats.sum())))

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.pairs_per_epoch / self.global_batch)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the pairs of an epoch in training order."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.repeats is None:
            return rng.permutation(len(self.lengths))
        whole = np.floor(self.repeats).astype(np.int64)
        indices = np.repeat(np.arange(len(whole)), whole)
        missing = self.pairs_per_epoch - len(indices)
        if missing > 0:
            fraction = self.repeats - whole
            drawn = rng.choice(len(whole), missing, replace=False, p=fraction / fraction.sum())
            indices = np.concatenate([indices, drawn])
        return rng.permutation(indices)

    def epoch(self, epoch: int, rank: int = 0) -> list[Step]:
        """All steps of an epoch for one rank."""
        return self._cut(self.order(epoch), rank)

    def in_order(self, rank: int = 0) -> list[Step]:
        """Every pair once, by length so that little is padded: for evaluation."""
        return self._cut(np.argsort(-self.lengths.sum(1), kind="stable"), rank)

    def _cut(self, order: np.ndarray, rank: int) -> list[Step]:
        starts = range(0, len(order), self.global_batch)
        return [self._deal(order[at : at + self.global_batch], rank) for at in starts]

    def _deal(self, pairs: np.ndarray, rank: int) -> Step:
        """Deal a step's pairs: neighbours in length share a micro-batch, ranks take turns."""
        pairs = pairs[np.argsort(-self.lengths[pairs].sum(1), kind="stable")]
        slots = math.ceil(len(pairs) / (self.micro_batch * self.world_size))
        per_slot = math.ceil(len(pairs) / slots)
        micro_batches = []
        for slot in range(slots):
            mine = pairs[slot * per_slot : (slot + 1) * per_slot][rank :: self.world_size]
            micro_batches.append(tuple(mine.tolist()) or (FILLER,))
        return Step(tuple(micro_batches), len(pairs), int(self.nll_tokens[pairs].sum()))


def nll_token_counts(lengths: np.ndarray, nll_scope: str) -> np.ndarray:
    """Tokens that L_SFT covers in each pair, (N,).

    The first token of a sequence has nothing to be predicted from and never counts.
    """
    prompt, chosen = lengths[:, 0], lengths[:, 1]
    return chosen + prompt - 1 if nll_scope == "prompt_and_completion" else chosen


def repeats_of(source_ids: np.ndarray, weights: Sequence[float] | None) -> np.ndarray | None:
    """Per-pair repeats from one weight per source, or None where every pair appears once."""
    if weights is None or all(weight == 1 for weight in weights):
        return None
    return np.asarray(weights, dtype=np.float64)[source_ids]
