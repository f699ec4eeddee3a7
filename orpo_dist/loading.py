"""Planned steps -> batches of tensors, in the shape that transformers' Trainer can consume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset, Sampler

from orpo_dist.batching import FILLER, Step
from orpo_dist.data.pairs import PairDataset
from orpo_dist.padding import PaddedBatch, pad_pairs


@dataclass(frozen=True)
class LoadedStep:
    """This rank's micro-batches of one step, and the counts of the whole step over all ranks."""

    batches: list[PaddedBatch]
    total_pairs: int
    total_nll_tokens: int

    def __contains__(self, name: str) -> bool:
        """Trainer asks a batch for ``labels``; a planned step has its own counts."""
        return False


class StepDataset(Dataset):  # type: ignore[type-arg]
    """Loads a planned step; its length is the number of pairs behind it."""

    def __init__(self, pairs: PairDataset, nll_scope: str, pad_id: int):
        self.pairs, self.nll_scope, self.pad_id = pairs, nll_scope, pad_id

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, step: Step) -> LoadedStep:
        batches = [self._batch(indices) for indices in step.micro_batches]
        return LoadedStep(batches, step.total_pairs, step.total_nll_tokens)

    def _batch(self, indices: tuple[int, ...]) -> PaddedBatch:
        real = indices != (FILLER,)
        pairs = [self.pairs[index] for index in indices] if real else [self.pairs[0]]
        return pad_pairs(pairs, self.nll_scope, self.pad_id, real)


class StepSampler(Sampler):  # type: ignore[type-arg]
    """Yields the steps that ``plan`` gives at the moment iteration begins, one to a batch.

    A sampler of whole batches, so that Trainer skips steps on resume without loading them.
    """

    def __init__(self, plan: Callable[[], list[Step]], steps: int):
        self.plan, self.steps = plan, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Step]]:
        return ([step] for step in self.plan())


def _only(batch: list[LoadedStep]) -> LoadedStep:
    return batch[0]


def step_loader(
    dataset: StepDataset, plan: Callable[[], list[Step]], steps: int, num_workers: int = 0
) -> DataLoader:  # type: ignore[type-arg]
    """A DataLoader over planned steps; each item is one ``LoadedStep``."""
    return DataLoader(
        dataset,
        batch_sampler=StepSampler(plan, steps),
        collate_fn=_only,
        num_workers=num_workers,
    )
