"""The plan: which pairs make optimizer step k, on which rank, in which micro-batch.

A step is a fixed set of pairs, chosen by (seed, epoch, global batch size) alone and only then dealt
out to ranks and micro-batches; the topology therefore never changes what a step trains on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from orpo_dist.batching.balance import (
    attention_pairs,
    deal_to_micro_batches,
    deal_to_ranks,
    packing_cost,
)
from orpo_dist.batching.curriculum import Curriculum

FILLER = -1  # an index that stands for "no pair": keeps ranks in step with weight 0


@dataclass(frozen=True)
class Work:
    """What a step has to compute, over all ranks.

    tokens: of prompts and answers, each prompt once. scored: tokens whose log-prob is needed.
    padded: tokens that the same micro-batches would have, padded and with every prompt twice.
    seen: (query, key) pairs of attention in one layer.
    """

    tokens: int = 0
    scored: int = 0
    padded: int = 0
    seen: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.scored + other.scored,
            self.padded + other.padded,
            self.seen + other.seen,
        )

    def __mul__(self, factor: float) -> Work:
        return Work(
            round(self.tokens * factor),
            round(self.scored * factor),
            round(self.padded * factor),
            self.seen * factor,
        )


@dataclass(frozen=True)
class Step:
    """One optimizer step (or evaluation batch) as one rank sees it.

    micro_batches: indices of pairs, ``FILLER`` where this rank has none; every rank has equally
    many micro-batches. total_pairs, total_nll_tokens: counts over all ranks, for normalisation.
    """

    micro_batches: tuple[tuple[int, ...], ...]
    total_pairs: int
    total_nll_tokens: int
    work: Work


@dataclass(frozen=True)
class StepPlan:
    """How N pairs are cut into steps.

    lengths: (N, 3) tokens of prompt, chosen, rejected. nll_tokens: (N,) tokens in L_SFT per pair.
    global_batch: pairs per step over all ranks. micro_batch: most pairs per forward pass.
    world_size: ranks, or groups of ranks that share each sequence.
    token_budget: most tokens per forward pass; a pair over it gets one of its own. None: no limit.
    repeats: (N,) how often a pair appears in an epoch; a fraction is its chance to appear.
    hidden_size: width of the model, which sets what attention costs beside the rest.
    padded: micro-batches are padded instead of packed. repeated: (N,) tokens that stand twice.
    curriculum: orders the first epochs from easy to hard; all others are shuffled.
    """

    lengths: np.ndarray
    nll_tokens: np.ndarray
    global_batch: int
    micro_batch: int
    world_size: int = 1
    seed: int = 0
    repeats: np.ndarray | None = None
    token_budget: int | None = None
    hidden_size: int = 2048
    padded: bool = False
    curriculum: Curriculum | None = None
    repeated: np.ndarray | None = None

    @property
    def pairs_per_epoch(self) -> int:
        """Pairs in one epoch; the same in every epoch."""
        if self.repeats is None:
            return len(self.lengths)
        return max(1, round(float(self.repeats.sum())))

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.pairs_per_epoch / self.global_batch)

    def place_of(self, step: int) -> dict[str, int]:
        """Where the run stands after so many steps, in numbers for a person or a comparison."""
        epoch, steps = divmod(step, self.steps_per_epoch)
        return {
            "pairs": len(self.lengths),
            "pairs_per_epoch": self.pairs_per_epoch,
            "epochs_done": epoch,
            "pairs_of_epoch": min(steps * self.global_batch, self.pairs_per_epoch),
        }

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the pairs of an epoch in training order."""
        rng = np.random.default_rng([self.seed, epoch])
        pairs = self._drawn(rng)
        if self.curriculum is not None and epoch < self.curriculum.epochs:
            return self.curriculum.arrange(pairs, rng)
        return rng.permutation(pairs)

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Indices of the pairs of an epoch, in no order."""
        if self.repeats is None:
            return np.arange(len(self.lengths))
        whole = np.floor(self.repeats).astype(np.int64)
        indices = np.repeat(np.arange(len(whole)), whole)
        missing = self.pairs_per_epoch - len(indices)
        if missing > 0:
            drawn = _draw(self.repeats - whole, missing, rng)
            indices = np.concatenate([indices, drawn])
        return indices

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens that each pair takes in a micro-batch, (N,): padded, both full sequences."""
        if not self.padded:
            return self.lengths.sum(1) + (0 if self.repeated is None else self.repeated)
        return 2 * (self.lengths[:, 0] + self.lengths[:, 1:].max(1))

    @cached_property
    def costs(self) -> np.ndarray:
        """Work of each pair, (N,), in tokens."""
        return packing_cost(self.lengths, self.hidden_size)

    def epoch(self, epoch: int, rank: int = 0) -> Iterator[Step]:
        """The steps of an epoch for one rank, each dealt when it is asked for."""
        return self._cut(self.order(epoch), rank)

    def in_order(self, rank: int = 0) -> Iterator[Step]:
        """Every pair once, longest first so that little is padded: for evaluation."""
        return self._cut(np.argsort(-self.sizes, kind="stable"), rank)

    def largest(self) -> list[int]:
        """The pairs of the largest micro-batch that there could be."""
        chosen: list[int] = []
        tokens = 0
        for pair in np.argsort(-self.sizes, kind="stable")[: 4 * self.micro_batch].tolist():
            size = int(self.sizes[chosen[0]] if self.padded and chosen else self.sizes[pair])
            fits = self.token_budget is None or tokens + size <= self.token_budget
            if (fits or not chosen) and len(chosen) < self.micro_batch:
                chosen.append(pair)
                tokens += size
        return chosen

    def _cut(self, order: np.ndarray, rank: int) -> Iterator[Step]:
        for at in range(0, len(order), self.global_batch):
            pairs = order[at : at + self.global_batch]
            dealt = self._deal(pairs)
            micro_batches = tuple(tuple(pairs[m].tolist()) or (FILLER,) for m in dealt[rank])
            nll_tokens = int(self.nll_tokens[pairs].sum())
            yield Step(micro_batches, len(pairs), nll_tokens, self._work(pairs, dealt))

    def _work(self, pairs: np.ndarray, dealt: list[list[list[int]]]) -> Work:
        prompt, chosen, rejected = self.lengths[pairs].T
        longest = (prompt + np.maximum(chosen, rejected)).tolist()
        return Work(
            tokens=int(self.lengths[pairs].sum()),
            scored=int(self.nll_tokens[pairs].sum() + rejected.sum()),
            padded=sum(
                2 * len(micro) * max(longest[at] for at in micro)
                for micro_batches in dealt
                for micro in micro_batches
                if micro
            ),
            seen=float(attention_pairs(self.lengths[pairs]).sum()),
        )

    def _deal(self, pairs: np.ndarray) -> list[list[list[int]]]:
        """Positions in ``pairs``, by rank and micro-batch."""
        slots = math.ceil(len(pairs) / (self.micro_batch * self.world_size))
        places = self.micro_batch * slots
        return deal_to_micro_batches(
            deal_to_ranks(self.costs[pairs], self.world_size, places),
            self.sizes[pairs],
            self.micro_batch,
            self.token_budget or math.inf,
            self.padded,
        )


def _draw(chances: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` different indices, each with its chance, (N,) below 1, scaled to that count.

    Systematic sampling: chances in a row, a point in every unit length. Unlike draws one by one it
    keeps to the chances, and all pairs of one chance together to their share.
    """
    chances = chances * (count / chances.sum())
    while (chances > 1 + 1e-9).any():
        sure = chances >= 1
        chances[sure] = 1
        chances[~sure] *= (count - sure.sum()) / chances[~sure].sum()
    mixed = rng.permutation(len(chances))
    order = mixed[np.argsort(chances[mixed], kind="stable")]
    ends = chances[order].cumsum()
    points = (np.arange(count) + rng.random()) * (ends[-1] / count)
    return order[np.minimum(np.searchsorted(ends, points, side="right"), len(order) - 1)]


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


def temperature_weights(source_ids: np.ndarray, temperature: float) -> list[float]:
    """One weight per source that gives it a share of ``n ** (1 / temperature)`` of an epoch.

    n: its pairs. 1 leaves the shares as they are; the higher, the more alike they get. The length
    of an epoch stays the same. (T5, arXiv 1910.10683, section 3.5.2, without its artificial limit.)
    """
    sizes = np.bincount(source_ids).astype(np.float64)
    shares = np.power(sizes, 1 / temperature, where=sizes > 0, out=np.zeros_like(sizes))
    repeats = shares / shares.sum() * sizes.sum() / np.maximum(sizes, 1)
    return [float(weight) for weight in repeats]
