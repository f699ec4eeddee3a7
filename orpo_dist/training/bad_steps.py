"""Steps whose loss or gradient is no finite number: which pairs may be at fault, and the record.

The gradient's norm is the one number that all ranks share anyway. So that it tells of a loss as
well, a loss that is no number is given a gradient that is none (``poisoned``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orpo_dist.base.types import PairScores
from orpo_dist.batching.steps import FILLER
from orpo_dist.engines.runtime import Runtime
from orpo_dist.runs.folder import read_metrics
from orpo_dist.training.callbacks import MetricsFile

logger = logging.getLogger("orpo_dist")

NAMED = 8  # rows in a warning; the file has all


def poisoned(share: Tensor) -> Tensor:
    """The same loss, to the last bit; where it is not finite, its gradient is NaN throughout."""
    return share * (1 + 0 * share.detach())


class Suspects:
    """What the micro-batches of this rank's step have said; stays on the device unless asked."""

    def __init__(self) -> None:
        self._seen: list[tuple[tuple[int, ...], Tensor, Tensor]] = []

    def forget(self) -> None:
        self._seen = []

    def add(self, pairs: tuple[int, ...], share: Tensor, scores: PairScores) -> None:
        """A micro-batch: indices of its B pairs, its share of the loss, and what it was made of."""
        sums = scores.chosen_logp + scores.rejected_logp + scores.nll_sum
        self._seen.append((pairs, share.detach(), sums.detach()))

    def found(self) -> tuple[bool, list[int]]:
        """Whether a loss is at fault, and the pairs to look at: those whose own scores are not
        finite, else those of the micro-batches whose loss is not, else all."""
        pairs, shares, sums = zip(*self._seen, strict=True) if self._seen else ((), (), ())
        if not pairs:
            return False, []
        lost = [not finite for finite in torch.isfinite(torch.stack(shares)).tolist()]
        bad = [
            index
            for indices, scores in zip(pairs, sums, strict=True)
            for index, finite in zip(indices, torch.isfinite(scores).tolist(), strict=True)
            if not finite
        ]
        if not bad:
            at_fault = lost if any(lost) else [True] * len(pairs)
            bad = [i for indices, is_bad in zip(pairs, at_fault, strict=True) if is_bad
                   for i in indices]  # fmt: skip
        return any(lost), sorted(index for index in bad if index != FILLER)


def suspects_of_all(own: tuple[bool, list[int]], runtime: Runtime) -> tuple[bool, list[int]]:
    """The same over all ranks; where some rank's loss is at fault, the pairs of those alone."""
    found: list[Any] = [own]
    if runtime.world_size > 1:
        found = [None] * runtime.world_size
        dist.all_gather_object(found, own, group=runtime.control)
    lost = any(is_lost for is_lost, _ in found)
    # Once each: ranks that share a sequence all tell of its pairs.
    return lost, sorted({i for is_lost, pairs in found if is_lost or not lost for i in pairs})


class BadSteps(MetricsFile):
    """Counts them and, where it has a file, writes one JSON object for each.

    While the last step is bad nothing is saved, so that the last good checkpoint stays.
    """

    def __init__(self) -> None:
        super().__init__(Path())
        self.in_a_row = self.total = 0
        self.owed: Callable[[], Any] | None = None  # to be called once the step is over

    def keep_in(self, path: Path, stage: int | None, first_step: int) -> None:
        """Write to a file. stage: as in ``MetricsFile``."""
        self.path, self.stage, self.first_step = path, stage, first_step

    def add(self, step: int, what: str, pairs: list[int], rows: Sequence[str], main: bool) -> None:
        """A bad step of this stage, counted from 1. what: loss or gradient; rows: of the pairs."""
        self.in_a_row += 1
        self.total += 1
        if not main:
            return
        step += self.first_step
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        logger.warning(
            "step %d skipped: its %s is no finite number; look at %s%s",
            step, what, ", ".join(rows[:NAMED]), more,
        )  # fmt: skip
        if self.path != Path():
            entry = {"step": step, "what": what, "rows": list(rows), "pairs": pairs}
            if self.stage is not None:
                entry["stage"] = self.stage
            with self.path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """On resume, forget those that are run again."""
        if self.path.is_file():
            super().on_train_begin(args, state, control, **kwargs)
            self.total = len(read_metrics(self.path))

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: it writes when there is something to tell."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.owed is not None:
            self.owed()
            self.owed = None
        self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.in_a_row:
            control.should_save = False
