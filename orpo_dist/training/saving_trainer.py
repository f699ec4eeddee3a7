"""transformers' Trainer with checkpoints that are whole, and that a run goes on from as it was."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState

from orpo_dist.base.types import UserError
from orpo_dist.checkpoints.pieces import Unwritten
from orpo_dist.checkpoints.saving import Saving, prune
from orpo_dist.engines.runtime import Runtime
from orpo_dist.runs.lineage import find_best, unusable, whole_checkpoint
from orpo_dist.runs.manifest import damage
from orpo_dist.upstream.hf_trainer import OpenTrainer

logger = logging.getLogger("orpo_dist")

WORTH_A_THREAD = 2**26  # bytes; smaller checkpoints are on the disk at once


class SavingTrainer(OpenTrainer):
    """Saves checkpoints whole or not at all, and takes up what callbacks and the best model were.

    Subclasses set ``runtime`` and ``global_batch`` (pairs per optimizer step over all ranks)
    before they call ``super().__init__``.
    """

    runtime: Runtime
    global_batch: int
    async_save: bool = True  # what takes long on the way to the disk goes on beside training

    # --- going on

    def begin_state(
        self, max_steps: int, steps: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> Any:
        """As Trainer; the best checkpoint is looked for where the run lies now."""
        found = super().begin_state(max_steps, steps, epochs, checkpoint, trial)
        best = self.state.best_global_step
        if checkpoint is None or not best:
            return found
        place, reason = self.runtime.on_main(lambda: find_best(Path(checkpoint), best))
        self.state.best_model_checkpoint = None if reason else str(place)
        if reason:
            logger.warning(
                "the best model so far cannot be restored (%s: %s): the best is looked for among "
                "those to come", place, reason,
            )  # fmt: skip
            self.state.best_global_step = self.state.best_metric = None
        return found

    def load_callback_state(self) -> None:
        """Give callbacks what they knew; their settings, and what to do next, are this run's."""
        for name, callbacks in self._stateful_callbacks().items():
            kept = self.state.stateful_callbacks.get(name, [])
            states = kept if isinstance(kept, list) else [kept]
            for callback, state in zip(callbacks, states, strict=False):
                for attribute, value in state.get("attributes", {}).items():
                    setattr(callback, attribute, value)

    def _note_callbacks(self) -> None:
        """Write into the state what callbacks know; Trainer's own lists grow with every save."""
        states = [one for same in self._stateful_callbacks().values() for one in same]
        fresh = TrainerState(stateful_callbacks=[*states, self.control])
        self.state.stateful_callbacks = fresh.stateful_callbacks

    def _stateful_callbacks(self) -> dict[str, list[ExportableState]]:
        """Callbacks that have a state to save, by the names of their classes."""
        found: dict[str, list[ExportableState]] = {}
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                found.setdefault(type(callback).__name__, []).append(callback)
        return found

    # --- checkpoints

    _saving: Saving | None = None  # written, and not yet in its place
    unwritten: list[Unwritten] | None = None  # of a checkpoint, while it is written: what is left
    _saves_to: Path | None = None  # while a checkpoint is written, which is not where it will be

    def checkpoints_folder(self, trial: Any) -> str:
        return str(self._saves_to or super().checkpoints_folder(trial))

    def save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer, but so that it is whole or not there; old ones go when the new one is."""
        folder, name = Path(self.checkpoints_folder(trial)), f"checkpoint-{self.state.global_step}"

        def write(scratch: Path) -> list[Unwritten]:
            self._saves_to, self.unwritten = scratch, []
            self._note_callbacks()  # Trainer expects all of them, also those that are new here
            try:
                super(SavingTrainer, self).save_checkpoint(model, trial)
            finally:
                self._saves_to = None
            self._note_best(folder)
            self._note_callbacks()
            if self.runtime.is_main:
                self.write_settings(scratch / name)
                self.state.save_to_json(str(scratch / name / TRAINER_STATE_NAME))
            later, self.unwritten = self.unwritten, None
            return later or []

        self._finish_saving()
        self._saving = Saving(folder, name, write, self.checkpoint_facts, self.runtime)
        stops = self.control.should_training_stop
        if stops or not self.async_save or self._saving.bytes < WORTH_A_THREAD:
            self._finish_saving()

    def _finish_saving(self) -> None:
        """See that the last checkpoint is whole and in its place; then old ones go."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        saving.finish()
        best, limit = self.state.best_model_checkpoint, self.args.save_total_limit
        self.runtime.on_main(lambda: prune(saving.folder, limit, best))
        if self.args.push_to_hub:
            super().push_checkpoint(str(saving.folder / saving.checkpoint.name))

    def after_step(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer, after every step; a checkpoint that has come to the disk is put in place."""
        if self._saving is not None and self._saving.on_disk:
            self._finish_saving()
        super().after_step(*args, **kwargs)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Trainer; where one process fails in training, its last checkpoint is still kept.

        Raises ``UserError`` for a checkpoint that lacks a file or a part of one.
        """
        wanted = resume_from_checkpoint
        if wanted is True:
            found = self.runtime.on_main(lambda: whole_checkpoint(Path(self.args.output_dir)))
            wanted = found and str(found)
        elif wanted:
            reason = self.runtime.on_main(lambda: unusable(Path(wanted), thorough=False))
            if reason:
                raise UserError(f"resume_from_checkpoint {wanted}: {reason}")
        if wanted:
            self.check_settings(Path(wanted))
        try:
            return super().train(wanted, *args, **kwargs)
        except BaseException:
            self._keep_what_can_be_kept()
            raise

    def _keep_what_can_be_kept(self) -> None:
        """Training has failed: the checkpoint on its way is finished, or its loss is said."""
        if self._saving is None:
            return
        name, reason = self._saving.checkpoint.name, "the ranks do not meet any more"
        if self.runtime.world_size == 1:
            try:
                self._finish_saving()
                return
            except Exception as error:  # what made training fail is what counts
                reason = str(error)
        logger.warning("%s was not yet in its place and is lost: %s", name, reason)

    def check_settings(self, checkpoint: Path) -> None:
        """``UserError`` where this run cannot go on from what a checkpoint was trained with."""

    def write_settings(self, checkpoint: Path) -> None:
        """Leave in a checkpoint what it was trained with; rank 0."""

    def push_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: Trainer asks before the checkpoint is in its place."""

    def _note_best(self, folder: Path) -> None:
        """Trainer has looked for the best checkpoint where this one was written."""
        best = self.state.best_global_step
        if best and (best == self.state.global_step or (folder / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{best}")

    def checkpoint_facts(self) -> dict[str, Any]:
        """What a manifest says: who wrote the checkpoint, and where in the run; JSON."""
        return {
            "step": self.state.global_step,
            "epoch": self.state.epoch,
            "engine": self.runtime.engine.name,
            "offload": self.runtime.engine.offload,
            "world_size": self.runtime.world_size,
            "global_batch_size": self.global_batch,
            "resumable": not self.args.save_only_model,
        }

    def _whole_best(self) -> Path:
        """The checkpoint of the best model; ``UserError`` where it is not whole any more."""
        best = Path(self.state.best_model_checkpoint)
        if reason := self.runtime.on_main(lambda: damage(best)):
            raise UserError(
                f"{best}: the best model cannot be restored, as {reason}; go on from the last "
                "checkpoint without load_best_model_at_end to keep the last model"
            )
        return best

    def load_best_model(self) -> None:
        """As Trainer, once it is known to be whole."""
        self._whole_best()
        super().load_best_model()

    def finish(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer, which with a limit of 1 would delete all but the best checkpoint.

        The newest is what a run that was stopped goes on from, and one killed before its model is
        saved.
        """
        self._finish_saving()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super().finish(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
