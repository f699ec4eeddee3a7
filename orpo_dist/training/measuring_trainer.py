"""What a trainer measures: losses and their sums, evaluations, and the lines of its log."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from orpo_dist.base.types import PairScores, StepMetrics
from orpo_dist.batching.loader import LoadedStep, StepDataset
from orpo_dist.batching.steps import nll_token_counts
from orpo_dist.scoring.metrics import RunningMeans, step_means
from orpo_dist.scoring.scorer import Batch
from orpo_dist.training.steady_trainer import SteadyTrainer
from orpo_dist.training.throughput import Throughput


class MeasuringTrainer(SteadyTrainer):
    """Subclasses say how a micro-batch is scored, what its loss is, and alpha over the run.

    ``stage`` and ``first_step``, of a staged run: its number from 1, and the steps before it.
    """

    stage: int | None = None
    first_step = 0
    throughput: Throughput
    _alpha_at: Callable[[float], float]
    _train_means: RunningMeans

    def score(self, model: Any, batch: Batch) -> PairScores:
        """Log-probabilities of one micro-batch under ``model``."""
        raise NotImplementedError

    def compute_objective(self, scores: PairScores, step: LoadedStep) -> tuple[Tensor, StepMetrics]:
        """The micro-batch's share of the step's loss, and its sums."""
        raise NotImplementedError

    def _alpha_of(self, steps_done: int) -> float:
        return self._alpha_at(min(1.0, steps_done / max(1, self.state.max_steps)))

    def _measured(self, scores: PairScores, step: LoadedStep) -> tuple[Tensor, Tensor]:
        """A micro-batch's share of the loss, router loss included, and of the step's means."""
        share, metrics = self.compute_objective(scores, step)
        router = None
        if scores.balance is not None:
            router = (scores.weight * scores.balance).sum() / step.total_pairs
            share = share + (self.config.router_aux_loss_coef or 0.0) * router
        counts = step.total_pairs, step.total_nll_tokens
        return share, step_means(share, metrics, step.orpo_alpha, *counts, router)

    def prediction_step(
        self, model: Any, inputs: LoadedStep, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Scores an evaluation batch as a part of the whole evaluation; keeps no logits."""
        pairs, nll_tokens = self._eval_counts
        whole = dataclasses.replace(
            inputs,
            total_pairs=pairs,
            total_nll_tokens=nll_tokens,
            orpo_alpha=self._alpha_at(1.0),
        )
        loss = torch.zeros((), device=self.args.device)
        with torch.no_grad():
            for batch, ids in inputs:
                scores = self.score(model, batch)
                share, means = self._measured(scores, whole)
                loss += share
                self._eval_means.add(means, scores, ids)
        return loss, None, None

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Trainer's loop, its loss replaced by means over all pairs and tokens at once."""
        dataset = dataloader.dataset
        assert isinstance(dataset, StepDataset)
        nll_tokens = nll_token_counts(dataset.pairs.lengths, self.config.nll_scope).sum()
        self._eval_counts = len(dataset), int(nll_tokens)
        self._eval_means = RunningMeans(dataset.pairs.categories, steps=1)
        output = super().evaluation_loop(
            dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        named = self._eval_means.pop(self.accelerator)
        named["loss"] = named["loss/orpo"]
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in named.items()})
        return output

    def _means_since_last_line(self, logs: dict[str, float]) -> dict[str, float]:
        """Of the steps that were not skipped; without any, ``logs`` loses its loss."""
        found = self.throughput.pop()
        if self._train_means.steps:
            found |= self._train_means.pop(self.accelerator)
        if self.bad_steps.total:
            found["skipped_steps"] = self.bad_steps.total
            if "loss/orpo" in found:
                found["loss"] = found["loss/orpo"]  # Trainer divides by skipped steps as well
            else:
                del logs["loss"]
            if self.bad_steps.in_a_row:
                logs.pop("grad_norm", None)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log line with the ORPO metrics of the interval, and its last step's alpha.

        Of a staged run it counts the steps of all stages, so that they make one curve.
        """
        if "loss" in logs and (self._train_means.steps or self.bad_steps.total):
            logs["orpo_alpha"] = self._alpha_of(self.state.global_step - 1)
            logs["progress"] = self.state.global_step / self.state.max_steps
            logs.update(self._means_since_last_line(logs))
        if self.stage is not None:
            logs["stage"] = self.stage
        before = self.state.global_step, self.state.max_steps
        self.state.global_step, self.state.max_steps = (self.first_step + own for own in before)
        try:
            super().log(logs, start_time)
        finally:
            self.state.global_step, self.state.max_steps = before
