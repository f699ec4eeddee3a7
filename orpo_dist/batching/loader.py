"""Planned steps -> batches of tensors, in the shape that transformers' Trainer can consume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from orpo_dist.base.types import UserError
from orpo_dist.batching.curriculum import Curriculum
from orpo_dist.batching.steps import (
    FILLER,
    Step,
    StepPlan,
    Work,
    nll_token_counts,
    repeats_of,
    temperature_weights,
)
from orpo_dist.batching.token_budget import asked_budget
from orpo_dist.config import ORPOConfig
from orpo_dist.data.pairs import PairDataset
from orpo_dist.scoring.scorer import Batch, Scorer


@dataclass(frozen=True)
class LoadedStep:
    """This rank's micro-batches of one step, and the counts of the whole step over all ranks.

    category_ids: of the pairs of each micro-batch, (B,) each. pairs: their indices. orpo_alpha: the
    alpha in force; the trainer, which knows how far it is, puts it in.
    """

    batches: list[Batch]
    category_ids: list[Tensor]
    total_pairs: int
    total_nll_tokens: int
    work: Work
    pairs: tuple[tuple[int, ...], ...] = ()
    orpo_alpha: float = math.nan

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        """The micro-batches, each with the categories of its pairs."""
        return zip(self.batches, self.category_ids, strict=True)

    def pin_memory(self) -> LoadedStep:
        """In pinned memory, from which a GPU can copy by itself; DataLoader asks for this name."""
        return replace(
            self,
            batches=[batch.pin_memory() for batch in self.batches],
            category_ids=[ids.pin_memory() for ids in self.category_ids],
        )

    def __contains__(self, name: str) -> bool:
        """Trainer asks a batch for ``labels``; a planned step has its own counts."""
        return False


class Ahead:
    """Does the work for the next item in a thread while the present one is used.

    work: called with one item after another, never with two at a time. prepare: called once, first,
    in that thread. What the work raises is raised to whoever asks for that item.
    """

    def __init__(
        self, work: Callable[[Any], LoadedStep], prepare: Callable[[], None] | None = None
    ):
        self._work = work
        self._thread = ThreadPoolExecutor(1, "collate", prepare)
        self._next: tuple[Any, Future[LoadedStep]] | None = None

    def __call__(self, item: Any, following: Any) -> LoadedStep:
        """The work for ``item``; that for ``following`` begins, unless it is None."""
        if self._next is not None and self._next[0] is item:
            found = self._next[1]
        else:  # the first one, or steps were skipped
            found = self._thread.submit(self._work, item)
        self._next = following and (following, self._thread.submit(self._work, following))
        return found.result()


class StepDataset(Dataset):
    """Loads a planned step; its length is the number of pairs behind it.

    gpu: make the next step's batches in a thread, in memory that this GPU copies from by itself.
    """

    def __init__(self, pairs: PairDataset, scorer: Scorer, gpu: torch.device | None = None):
        self.pairs, self.scorer = pairs, scorer
        self._ahead: Ahead | None = None
        if gpu is not None:
            use_gpu = partial(torch.cuda.set_device, gpu)
            self._ahead = Ahead(lambda step: self._load(step).pin_memory(), use_gpu)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, steps: tuple[Step, Step | None]) -> LoadedStep:
        """The first of the two; the other one comes after it."""
        return self._ahead(*steps) if self._ahead is not None else self._load(steps[0])

    def _load(self, step: Step) -> LoadedStep:
        batches = [self._batch(indices) for indices in step.micro_batches]
        ids = [
            torch.from_numpy(self.pairs.category_ids[list(indices)]).long()  # filler weighs nothing
            for indices in step.micro_batches
        ]
        return LoadedStep(
            batches, ids, step.total_pairs, step.total_nll_tokens, step.work, step.micro_batches
        )

    def _batch(self, indices: tuple[int, ...]) -> Batch:
        real = indices != (FILLER,)
        flat = self.pairs.flat(indices if real else [0])
        return self.scorer.collate(flat, real, pinned=self._ahead is not None)


class StepSampler(Sampler):
    """Yields the steps that ``plan`` gives at the moment iteration begins, each with the next one.

    A sampler of whole batches, so that Trainer skips steps on resume without loading them.
    """

    def __init__(self, plan: Callable[[], Iterable[Step]], steps: int):
        self.plan, self.steps = plan, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[Step, Step | None]]]:
        last: list[Step | None] = [None]
        for step, following in pairwise(chain(self.plan(), last)):
            assert step is not None
            yield [(step, following)]


def _only(batch: list[LoadedStep]) -> LoadedStep:
    return batch[0]


def step_loader(
    pairs: PairDataset,
    scorer: Scorer,
    plan: Callable[[], Iterable[Step]],
    steps: int,
    device: torch.device,
    workers: int = 0,
) -> DataLoader:
    """A DataLoader over planned steps; each item is one ``LoadedStep``.

    workers: processes that make them. With none a thread does, one step ahead, if device is a GPU.
    """
    gpu = device if device.type == "cuda" else None
    return DataLoader(
        StepDataset(pairs, scorer, None if workers else gpu),
        batch_sampler=StepSampler(plan, steps),
        collate_fn=_only,
        num_workers=workers,
        pin_memory=bool(workers and gpu),
    )


def make_plan(
    config: ORPOConfig, pairs: PairDataset, world_size: int, hidden_size: int, padded: bool
) -> StepPlan:
    """The step plan of a run over ``pairs``; ``auto`` for the token budget is yet to be found.

    A token budget alone limits micro-batches; without one ``batch_size`` does.
    """
    weights = config.data_weights
    if config.data_temperature is not None:
        weights = temperature_weights(pairs.source_ids, config.data_temperature)
    return StepPlan(
        lengths=pairs.lengths,
        nll_tokens=nll_token_counts(pairs.lengths, config.nll_scope),
        global_batch=config.global_batch_size or config.pairs_per_rank_step * world_size,
        micro_batch=(
            config.batch_size
            if config.max_tokens_per_microbatch is None
            else config.pairs_per_rank_step
        ),
        world_size=world_size,
        seed=config.seed,
        repeats=repeats_of(pairs.source_ids, weights),
        token_budget=asked_budget(config),
        hidden_size=hidden_size,
        padded=padded,
        curriculum=make_curriculum(config, pairs),
    )


def make_curriculum(config: ORPOConfig, pairs: PairDataset) -> Curriculum | None:
    """The order of the first epochs that a config asks for; None: shuffled."""
    if config.curriculum is None:
        return None
    known = {
        "length": pairs.lengths[:, 1:].sum(1),
        "files": pairs.source_ids,
        "difficulty": pairs.difficulty,
        "margin": pairs.difficulty,
    }
    difficulty = known[config.curriculum]
    if difficulty is None:
        raise UserError(
            f"curriculum {config.curriculum}: these pairs have no difficulty; give rows a "
            "difficulty column, or train with train(config), which scores the base model"
        )
    return Curriculum(
        np.asarray(difficulty, dtype=np.float64),
        config.curriculum_epochs,
        config.curriculum_pacing,
        config.curriculum_start,
    )


def total_steps(config: ORPOConfig, plan: StepPlan) -> int:
    """Optimizer steps of the whole run."""
    return config.max_steps or math.ceil(config.epochs * plan.steps_per_epoch)
