"""``ORPOTrainer``: transformers' Trainer fed with planned steps and the ORPO objective."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback

from orpo_dist.base.types import PairScores, StepMetrics, UserError
from orpo_dist.batching.loader import LoadedStep, make_plan, step_loader, total_steps
from orpo_dist.batching.steps import Step, StepPlan
from orpo_dist.batching.token_budget import CPU_TOKENS
from orpo_dist.config import ORPOConfig, require_config
from orpo_dist.config.schedules import schedule_of
from orpo_dist.data import (
    PairDataset,
    as_pairs,
    check_pairs,
    keep_used_template,
)
from orpo_dist.engines import runtime
from orpo_dist.engines.allocator import keep_freed_memory
from orpo_dist.engines.mesh import mesh_of
from orpo_dist.models.answering import mend_generation, stop_at
from orpo_dist.models.flops import model_flops
from orpo_dist.models.model import make_policy
from orpo_dist.models.randomness import refuse_random
from orpo_dist.planning.sharing import shared_by
from orpo_dist.scoring.metrics import RunningMeans
from orpo_dist.scoring.model_config import number_of
from orpo_dist.scoring.objective import orpo_loss
from orpo_dist.scoring.packed_forward import causal_model
from orpo_dist.scoring.ranks import training_scorer
from orpo_dist.scoring.scorer import Batch
from orpo_dist.training.arguments import default_logging_steps, training_arguments
from orpo_dist.training.bad_steps import BadSteps, Suspects
from orpo_dist.training.callbacks import ProgressLine
from orpo_dist.training.measuring_trainer import MeasuringTrainer
from orpo_dist.training.rates import idle_steps
from orpo_dist.training.settled import Settled, settle
from orpo_dist.training.throughput import Throughput, peak_flops
from orpo_dist.upstream import check

logger = logging.getLogger("orpo_dist")

Rows = PairDataset | Iterable[dict[str, Any]]


class ORPOTrainer(MeasuringTrainer):
    """Trains a causal language model with ORPO.

    model: a model of transformers, or a folder / hub id to load (settings from ``args``).
    args: the settings; ``args.model`` and ``args.data_path`` are not needed here.
    train_dataset, eval_dataset: rows with prompt, chosen and rejected (a ``datasets.Dataset``, any
    iterable of dicts), or a ``PairDataset``.
    processing_class: the tokenizer. peft_config: wrap the model in this adapter. settled: args and
    tokenizer, where they are settled already.

    Raises ``UserError`` for settings or data that cannot work.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | None = None,
        args: ORPOConfig | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        settled: Settled | None = None,
    ):
        check("hf_trainer")
        if settled is None:
            asked = args if args is not None else ORPOConfig()
            require_config(asked, "args")
            here, has_eval = runtime.start(), eval_dataset is not None
            settled = settle(asked, model, has_eval, here, processing_class)
        config, processing_class = settled.config, settled.tokenizer
        self.runtime, self.encoder = settled.here, settled.encoder
        train_pairs = as_pairs(train_dataset, self.encoder, config, training=True)
        eval_pairs = as_pairs(eval_dataset, self.encoder, config)
        keep_used_template(self.encoder, train_pairs, eval_pairs)
        longest = train_pairs if train_pairs is not None else eval_pairs
        config = shared_by(config, settled.model_config, longest, self.runtime)
        self.mesh = mesh_of(self.runtime, config.ranks_per_sequence)
        # Before the model, so that ZeRO-3 can deal out its weights as they are loaded.
        training_args = training_arguments(config, str(config.project_name), self.runtime)
        policy = make_policy(model, config, peft_config, self.runtime.engine)
        mend_generation(causal_model(policy))
        stop_at(causal_model(policy), self.encoder.end_id)
        refuse_random(policy, self.runtime)
        self.scorer = training_scorer(
            policy, config, processing_class, self.mesh.sequence, self.runtime
        )
        width = number_of(policy.config.get_text_config(), "hidden_size")
        self._hidden_size = width or StepPlan.hidden_size  # for even shares
        self.train_plan = train_pairs and self._plan(config, train_pairs, training_args)
        self.global_batch = self.train_plan.global_batch if self.train_plan else 0
        if self.train_plan and config.logging_steps is None:
            steps = default_logging_steps(total_steps(config, self.train_plan))
            config = config.replace(logging_steps=steps)
            training_args.logging_steps = steps
        self.config, self.async_save = config, config.async_save
        self._alpha_at = schedule_of(config)
        self._train_means = RunningMeans(train_pairs.categories if train_pairs else ())
        self._before_step: tuple[Tensor | None, int] = None, 0  # of the means
        self.bad_steps, self.suspects = BadSteps(), Suspects()
        super().__init__(
            model=policy,
            args=training_args,
            train_dataset=train_pairs,
            eval_dataset=eval_pairs,
            processing_class=processing_class,
            callbacks=[self.bad_steps, *(callbacks or [])],
            optimizers=optimizers,
        )
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self.throughput = self._throughput(policy)
        self.add_callback(self.throughput)
        for noisy in (ProgressCallback, PrinterCallback):
            if self.pop_callback(noisy):
                self.add_callback(ProgressLine)

    def _throughput(self, policy: Any) -> Throughput:
        """The clock of steps; with the share of the device's peak, where both are known."""
        peak = peak_flops(self.args.device, self.config.mixed_precision == "bf16")
        flops = model_flops(causal_model(policy))
        return Throughput(flops, peak and peak * self.args.world_size, self.args.device)

    # --- data

    def get_train_dataloader(self) -> DataLoader:
        """One item per optimizer step: this rank's micro-batches of the planned step."""
        plan, rank = self.train_plan, self.mesh.data_rank
        if plan is None:
            raise UserError("training needs a train_dataset")

        def current_epoch() -> Iterator[Step]:
            # Counted in steps, so that a run resumed in the middle of an epoch finds its place.
            assert self.train_plan is not None
            return self.train_plan.epoch(self.state.global_step // plan.steps_per_epoch, rank)

        return self._loader(self.train_dataset, current_epoch, plan.steps_per_epoch)

    def get_eval_dataloader(self, eval_dataset: Rows | None = None) -> DataLoader:
        """Every pair once, longest first."""
        pairs = self.eval_dataset if eval_dataset is None else eval_dataset
        if pairs is None:
            raise UserError("evaluation needs an eval_dataset")
        if not isinstance(pairs, PairDataset):
            pairs = as_pairs(pairs, self.encoder, self.config)
        elif pairs is not self.eval_dataset:
            check_pairs(pairs, self.encoder, "eval_dataset")
        plain: dict[str, Any] = dict.fromkeys(("data_weights", "data_temperature", "curriculum"))
        if self.train_plan is None:  # nothing has told what fits
            plain |= {"gradient_accumulation": 1, "global_batch_size": None}
        plan = self._plan(self.config.replace(**plain), pairs, self.args)
        if self.train_plan is not None:
            plan = dataclasses.replace(plan, token_budget=self.train_plan.token_budget)
        rank = self.mesh.data_rank
        return self._loader(pairs, lambda: plan.in_order(rank), plan.steps_per_epoch)

    def _plan(self, config: ORPOConfig, pairs: PairDataset, args: Any) -> StepPlan:
        on_cpu = config.max_tokens_per_microbatch == "auto" and args.device.type == "cpu"
        if on_cpu:
            config = config.replace(max_tokens_per_microbatch=None)
        ranks = self.mesh.data_ranks
        plan = make_plan(config, pairs, ranks, self._hidden_size, self.scorer.padded)
        budget = CPU_TOKENS * self.mesh.sequence.size if on_cpu else plan.token_budget
        repeated = self.scorer.repeated(pairs.lengths)
        return dataclasses.replace(plan, token_budget=budget, repeated=repeated)

    def _loader(self, pairs: PairDataset, plan: Any, steps: int) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return step_loader(pairs, self.scorer, plan, steps, self.args.device, workers)

    # --- one step

    def score(self, model: Any, batch: Batch) -> PairScores:
        """Log-probabilities of one micro-batch under ``model``."""
        return self.scorer.score(model, batch.to(self.args.device))

    def compute_objective(self, scores: PairScores, step: LoadedStep) -> tuple[Tensor, StepMetrics]:
        """This micro-batch's share of the step's loss, and its sums; override for another.

        scores: what the model says about the pairs of the micro-batch; their weight multiplies
        every sum, and is below 1 where several ranks share a sequence. step: ``total_pairs`` and
        ``total_nll_tokens`` count the whole step (or the whole evaluation) over all ranks; divide
        by them, and the loss does not depend on how the step was cut. ``step.orpo_alpha`` is the
        alpha in force: that of this step, and in evaluations that of the run's end, so that they
        compare. Pairs of ``scores.weight`` 0 are filler and must not count.
        """
        return orpo_loss(
            scores,
            step.orpo_alpha,
            self.config.loss_form,
            step.total_pairs,
            step.total_nll_tokens,
        )

    def training_step(
        self, model: Any, inputs: LoadedStep, num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward over the micro-batches of a planned step; returns its loss.

        The loss is scaled by the world size because every engine averages gradients over ranks,
        while the shares of a step have to be summed.
        """
        model.train()
        if hasattr(self.optimizer, "train"):  # schedule-free optimizers
            self.optimizer.train()
        alpha = self._alpha_of(self.state.global_step)
        inputs = dataclasses.replace(inputs, orpo_alpha=alpha)
        self._before_step = self._train_means.total, self._train_means.steps
        loss = self.run_micro_batches(model, inputs)
        self._train_means.steps += 1
        self.throughput.add(inputs.work, inputs.total_pairs)
        return loss.nan_to_num(0.0, 0.0, 0.0)  # of steps that are skipped

    def micro_batch_loss(self, model: Any, step: LoadedStep, number: int) -> Tensor:
        """As promised to ``BudgetTrainer``."""
        scores = self.score(model, step.batches[number])
        share, means = self._measured(scores, step)
        ids = step.category_ids[number]
        self._train_means.add(means, scores, ids)
        self.suspects.add(step.pairs[number], share, scores)
        return share

    def forget_step(self) -> None:
        self._train_means.total, self._train_means.steps = self._before_step
        self.suspects.forget()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``BudgetTrainer``."""
        self._mention_idle_steps()
        return super().train(*args, **kwargs)

    def _mention_idle_steps(self) -> None:
        """A warning where much of the run, which may be short, has learning rate 0."""
        if self.train_plan is None or self.lr_scheduler is not None:
            return
        if said := idle_steps(self.args, total_steps(self.config, self.train_plan)):
            stage = f"stage {self.stage}: " if self.stage is not None else ""
            logger.warning("%s%s", stage, said)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: Trainer's estimate would take padding for work."""
        return 0

    def checkpoint_facts(self) -> dict[str, Any]:
        """As ``EngineTrainer``, with the place in the plan of the data."""
        assert self.train_plan is not None
        self._digest = self._digest or self.train_dataset.digest()
        place = self.train_plan.place_of(self.state.global_step)
        return {
            **super().checkpoint_facts(),
            "plan": {**place, "data": self._digest},
        }

    _digest = ""
