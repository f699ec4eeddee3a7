"""A run that stays itself: on the data it began with, and past steps that are no numbers."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.runs.changes import SETTINGS, check_trainer, record
from orpo_dist.runs.folder import write_json
from orpo_dist.runs.lineage import newest_checkpoint
from orpo_dist.training.bad_steps import BadSteps, Suspects, suspects_of_all
from orpo_dist.training.budget_trainer import BudgetTrainer
from orpo_dist.upstream.accelerate import sync_gradients
from orpo_dist.upstream.deepspeed import engine_of

logger = logging.getLogger("orpo_dist")


class SteadyTrainer(BudgetTrainer):
    """Leaves in checkpoints what they were trained with, and skips steps that are no numbers.

    Subclasses set ``bad_steps``, also among the callbacks, and hand every micro-batch to
    ``suspects``.
    """

    bad_steps: BadSteps
    suspects: Suspects
    asked: ORPOConfig | None = None  # the settings as they were given, where ``args`` are not that
    _settings: dict[str, Any] | None = None

    # --- going on

    def write_settings(self, folder: Path) -> None:
        if self._settings is None:
            config, pairs = self.asked or self.config, (self.train_dataset, self.eval_dataset)
            self._settings = record(config, self.config, self.global_batch, *pairs)
        write_json(folder / SETTINGS, self._settings)

    def check_settings(self, checkpoint: Path) -> None:
        """``UserError`` for a checkpoint of other data or settings; harmless changes are said."""
        if self.asked is not None:
            return  # whoever has given the settings has compared them
        compared = partial(
            check_trainer, checkpoint, self.config, self.args.world_size, self.global_batch,
            self.train_dataset, self.eval_dataset,
        )  # fmt: skip
        if said := self.runtime.on_main(compared):
            logger.info(said)

    # --- steps that are no numbers

    def gradient_norm(self, model: Any, grad_norm: Any = None) -> float | None:
        """As Trainer, as a number: the last thing before the optimizer's step, and the same on all
        ranks, so that all of them take that step or none does."""
        norm = super().gradient_norm(model, grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        norm = None if norm is None else float(norm)
        skipped = self.is_deepspeed_enabled and self.accelerator.optimizer_step_was_skipped
        if skipped or not math.isfinite(norm or 0.0):
            self._judge()
        else:
            self.bad_steps.in_a_row = 0
        self.suspects.forget()
        return norm

    def _judge(self) -> None:
        """Skip a step, unless its gradient is what the scaling of fp16 has made of it.

        Raises ``UserError`` where there are too many in a row.
        """
        lost, pairs = suspects_of_all(self.suspects.found(), self.runtime)
        if not lost and self._loss_scale() > 1:
            return  # the scale is halved, and this step skipped, by those who scale
        self._skip()
        self.forget_step()
        names = [self.train_dataset.origin(pair) for pair in pairs]
        step, main = self.state.global_step + 1, self.runtime.is_main
        self.bad_steps.add(step, "loss" if lost else "gradient", pairs, names, main)
        if self.bad_steps.in_a_row > self.config.max_bad_steps:
            raise UserError(self._too_many(step))

    def _skip(self) -> None:
        """Leave weights and optimizer as they are; the schedule goes on, as the step is counted."""
        if not self.is_deepspeed_enabled:
            # What tells accelerate's optimizer that there is nothing to do yet. A scaler has to
            # see the step, and skips it itself.
            if self.accelerator.scaler is None:
                sync_gradients(self.accelerator, False)
            return
        # DeepSpeed has skipped the step, for which reason Trainer will not move the schedule.
        engine = engine_of(self.accelerator)
        self.bad_steps.owed = (engine.lr_scheduler or self.lr_scheduler).step

    def _loss_scale(self) -> float:
        if self.is_deepspeed_enabled:
            return float(engine_of(self.accelerator).optimizer.loss_scale)
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _too_many(self, step: int) -> str:
        first = step + 1 - self.bad_steps.in_a_row + self.bad_steps.first_step
        last = step + self.bad_steps.first_step
        steps = f"step {last}" if first == last else f"steps {first} to {last}"
        checkpoint = newest_checkpoint(Path(self.args.output_dir))
        kept = f"{checkpoint} is from before" if checkpoint else "there is no checkpoint yet"
        return (
            f"{steps}: no finite loss or gradient, and max_bad_steps is "
            f"{self.config.max_bad_steps}; look at the rows that were named, try a lower lr or a "
            f"higher precision; {kept}"
        )
