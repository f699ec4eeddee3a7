"""Micro-batches that fill the memory: their token budget, and what happens where it runs out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orpo_dist.base.types import UserError
from orpo_dist.batching.loader import LoadedStep
from orpo_dist.batching.steps import FILLER, StepPlan, Work
from orpo_dist.batching.token_budget import (
    LOWER,
    find_token_budget,
    fits_in_memory,
    free_cache,
    halved,
    out_of_memory,
    tokens_of,
)
from orpo_dist.config import ORPOConfig
from orpo_dist.models.kernels import forget_kernels, settle_kernels
from orpo_dist.models.recomputing import Away, recompute
from orpo_dist.planning.budget import planned_budget, planned_form
from orpo_dist.planning.memory import is_paged, moments
from orpo_dist.training.bad_steps import poisoned
from orpo_dist.training.engine_trainer import EngineTrainer
from orpo_dist.upstream.accelerate import sync_gradients

logger = logging.getLogger("orpo_dist")


class BudgetTrainer(EngineTrainer):
    """Runs the micro-batches of a step, and knows how many tokens they may hold.

    Subclasses set ``config``, ``train_plan`` and ``scorer``, and say in ``micro_batch_loss`` what
    one micro-batch contributes.
    """

    config: ORPOConfig
    train_plan: StepPlan | None
    scorer: Any
    most_tokens: int | None = None  # of a micro-batch of this rank, after memory has run out

    def micro_batch_loss(self, model: Any, step: LoadedStep, number: int) -> Tensor:
        """This micro-batch's share of the step's loss, with what is logged of it."""
        raise NotImplementedError

    def forget_step(self) -> None:
        """Drop what is to be logged of the step that is under way."""
        raise NotImplementedError

    # --- before the first step

    def settle_budget(self) -> None:
        """Find the token budget where it is ``auto`` and still open; later calls do nothing.

        Before that settles which layers are recomputed and what computes them, on which it depends.
        """
        self._settle_layers()
        plan = self.train_plan
        wanted = self.config.max_tokens_per_microbatch == "auto"
        if plan is None or not wanted or plan.token_budget is not None or self._settled:
            return
        if self._works_together:
            budget: int | None = planned_budget(self.model, self.config, plan, self.runtime)
        else:
            budget = find_token_budget(
                plan, self._fits, lambda fits: not self.runtime.agree_on_most(not fits)
            )
        self.train_plan = dataclasses.replace(plan, token_budget=budget)
        self._settled = True

    _settled = False

    @property
    def _works_together(self) -> bool:
        """Whether a rank that runs out of memory leaves others waiting in the same micro-batch."""
        shares = self.scorer.sequence.size > 1
        return shares or self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _settle_layers(self) -> None:
        """Which layers are recomputed and what computes them: chosen where that is ``auto``, and
        told to the model."""
        plan, form = self.train_plan, self.config.gradient_checkpointing
        if plan is None or self.kernels is not None:
            return
        if form == "auto":
            form = planned_form(self.model, self.config, plan, self.runtime)
            self.config = self.config.replace(
                gradient_checkpointing=form,
                activation_offload=bool(form) and self.config.activation_offload,
            )
        recompute(self.model, form, Away() if self.config.activation_offload else None)
        self.kernels = settle_kernels(self.model, self.config, self.runtime, self.args.device)

    kernels: str | None = None  # what computes the layers while they train, as it came out

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer; first finds the token budget, where that is ``auto``.

        Afterwards the model has its own layers, with which it answers and is saved.
        """
        self.settle_budget()
        try:
            return super().train(*args, **kwargs)
        finally:
            forget_kernels(self.model, self.kernels)
            self.kernels = None

    def _fits(self, pairs: Sequence[int]) -> bool:
        """Whether forward and backward over these pairs leave room for the optimizer."""

        def share() -> Tensor:
            step = dataclasses.replace(self._alone(pairs), orpo_alpha=1.0)
            with self.accelerator.autocast():
                return self.micro_batch_loss(self.model.train(), step, 0)

        name = self.config.optimizer
        state = 0.0 if is_paged(name) else moments(name) / 4
        buckets = self.args.world_size > 1  # DDP's
        fits = fits_in_memory(self.model, share, state + buckets)
        self.forget_step()
        return fits

    def _alone(self, pairs: Sequence[int]) -> LoadedStep:
        """A step of one micro-batch."""
        batch = self.scorer.collate(self.train_dataset.flat(list(pairs)))
        ids = torch.from_numpy(self.train_dataset.category_ids[list(pairs)]).long()
        return LoadedStep([batch], [ids], 1, 1, Work(), (tuple(pairs),))

    # --- a step

    def run_micro_batches(self, model: Any, step: LoadedStep) -> Tensor:
        """Forward and backward over all micro-batches of this rank; the step's loss, summed.

        Where memory runs out the step is done again in smaller micro-batches, which leaves its loss
        as it is. Under engines that send something with every micro-batch, and in the one with
        which DDP sends gradients, others wait for this rank: then ``UserError`` says what to set.
        """
        step = self._within(step)
        while True:
            try:
                return self._forward_and_backward(model, step)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Outside of the handler, so that the failed pass is not held by its traceback.
            self._lower_limit(step, reason)
            model.zero_grad(set_to_none=True)
            self.forget_step()
            free_cache()
            step = self._within(step)

    def _forward_and_backward(self, model: Any, step: LoadedStep) -> Tensor:
        loss = torch.zeros((), device=self.args.device)
        for number in range(len(step.batches)):
            self._at = number
            last = number == len(step.batches) - 1
            sync_gradients(self.accelerator, last)
            engine_syncs = last or self.is_deepspeed_enabled or not self.reduces_once
            with contextlib.nullcontext() if engine_syncs else self.accelerator.no_sync(model):
                share = self.micro_batch_loss(model, step, number)
                self.accelerator.backward(poisoned(share) * self.args.world_size)
            loss += share.detach() * self.args.world_size
        return loss

    def _lower_limit(self, step: LoadedStep, reason: str) -> None:
        """Allow half of what the failed micro-batch held; ``UserError`` where that cannot help."""
        plan = self.train_plan
        assert plan is not None
        pairs = [pair for pair in step.pairs[self._at] if pair != FILLER]
        tokens = tokens_of(plan, pairs) if pairs else 0
        if len(pairs) < 2:
            raise UserError(f"out of memory with one pair of {tokens} tokens ({reason}): {LOWER}")
        if self._works_together or (self.args.world_size > 1 and self._at == len(step.batches) - 1):
            raise UserError(
                f"out of memory with a micro-batch of {tokens} tokens ({reason}): set "
                f"max_tokens_per_microbatch to {tokens // 2} and go on from the last checkpoint"
            )
        self.most_tokens = tokens // 2
        logger.warning(
            "out of memory with a micro-batch of %d tokens: step repeated, at most %d from here "
            "on; max_tokens_per_microbatch %d would spare the attempt", tokens, *[tokens // 2] * 2,
        )  # fmt: skip

    def _within(self, step: LoadedStep) -> LoadedStep:
        """The step in micro-batches within this rank's limit; the same one where it has none."""
        plan, limit = self.train_plan, self.most_tokens
        if limit is None or plan is None:
            return step
        batches, ids, cut = [], [], []
        for batch, categories, pairs in zip(
            step.batches, step.category_ids, step.pairs, strict=True
        ):
            pieces = _cut(plan, pairs, limit)
            if len(pieces) == 1:
                batches.append(batch)
                ids.append(categories)
            else:
                alone = [self._alone(piece) for piece in pieces]
                batches += [one.batches[0] for one in alone]
                ids += [one.category_ids[0] for one in alone]
            cut += pieces
        return dataclasses.replace(step, batches=batches, category_ids=ids, pairs=tuple(cut))


def _cut(plan: StepPlan, pairs: tuple[int, ...], limit: int) -> list[tuple[int, ...]]:
    """A micro-batch in pieces of at most ``limit`` tokens; single pairs stay whole."""
    if pairs == (FILLER,) or tokens_of(plan, pairs) <= limit:
        return [pairs]
    halves = halved(plan.sizes[list(pairs)], plan.padded)
    if halves is None:
        return [pairs]
    return [
        piece for half in halves for piece in _cut(plan, tuple(pairs[at] for at in half), limit)
    ]
