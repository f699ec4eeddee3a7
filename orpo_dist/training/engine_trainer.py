"""transformers' Trainer, made right under every engine; knows nothing of ORPO."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINING_ARGS_NAME

from orpo_dist.base.types import UserError
from orpo_dist.checkpoints import elastic
from orpo_dist.checkpoints.checkpoint import check_weights, without_twins, written_on
from orpo_dist.checkpoints.shards import Holding, holding, loss_scale, set_loss_scale
from orpo_dist.engines.engine import reduces_once
from orpo_dist.models.adapters import complete_adapter
from orpo_dist.models.randomness import as_it_was
from orpo_dist.training.saving_trainer import SavingTrainer
from orpo_dist.upstream import check
from orpo_dist.upstream.peft import without_card
from orpo_dist.upstream.torch import tell_rates

logger = logging.getLogger("orpo_dist")

COPIED = 2 / 3  # of a process's free memory, that a copy to be written may take


class EngineTrainer(SavingTrainer):
    """Asserts the engine, and writes checkpoints and models that are whole.

    Subclasses set ``runtime`` and ``global_batch`` (pairs per optimizer step over all ranks)
    before they call ``super().__init__``.
    """

    reduces_once = True  # gradients of a step, or else with every micro-batch

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer, then what its plugins get wrong for us."""
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            _keep_scores_precise(self.accelerator.state.fsdp_plugin)
        if self.is_deepspeed_enabled and not torch.cuda.is_available():
            # DeepSpeed's own CPU Adam has to be compiled; torch's is as fast at this size.
            settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
            settings["zero_force_ds_cpu_optimizer"] = False
        # Gradients lie in DDP's buckets themselves, not in a copy beside them.
        self.accelerator.ddp_handler.gradient_as_bucket_view = True

    def prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """As Trainer, but an engine reads no files of its own: all go on from the same form."""
        native = resume_from_checkpoint if self._keeps_own_files else None
        model, loader = super().prepare_for_training(max_steps, train_dataloader, native)
        assert self.args.world_size == self.runtime.world_size
        self.runtime.check_engine(model)
        self.reduces_once = self._may_wait_with_gradients(model)
        if native is None:
            self.load_optimizer(resume_from_checkpoint)
        return model, loader

    @property
    def _keeps_own_files(self) -> bool:
        """Whether checkpoints are the engine's: state on NVMe is nowhere whole to be read."""
        return self.runtime.engine.offload == "nvme"

    def _holding(self) -> Holding:
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        return holding(self.model_wrapped, model, self.optimizer)

    def _may_wait_with_gradients(self, model: Any) -> bool:
        """Whether the engine reduces gradients once a step; the same on every rank."""
        engine = self.runtime.engine
        if engine.name != "fsdp2":
            return reduces_once(engine, 0, 0.0)
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        memory = device_memory(self.args.device)
        once = not self.runtime.agree_on_most(not reduces_once(engine, trains, memory))
        if not once:
            logger.info(
                "fsdp2: reduces gradients with every micro-batch, as whole ones would take %.1f "
                "of %.1f GiB on every rank", 4 * trains / 2**30, memory / 2**30,
            )  # fmt: skip
        return once

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer; an optimizer that cannot be had is the user's to change."""
        with as_user_error(f"optimizer {self.args.optim.value}"):
            optimizer = super().create_optimizer(*args, **kwargs)
        self._check_bitsandbytes()
        # An adapter leaves the group without decay empty. DeepSpeed drops it, and then its groups
        # and the schedule's do not match any more.
        groups = self.optimizer.param_groups
        groups[:] = [group for group in groups if group["params"]]
        self._rates = [(group["lr"], group.get("weight_decay")) for group in groups]
        return optimizer

    def _check_bitsandbytes(self) -> None:
        if not type(self.optimizer).__module__.startswith("bitsandbytes"):
            return
        check("bitsandbytes")
        if getattr(self.optimizer, "is_paged", False) and self.args.device.type == "cpu":
            logger.warning(
                "optimizer %s: pages its state between a GPU and the host; on this CPU it is %s",
                self.args.optim.value, self.args.optim.value.removeprefix("paged_"),
            )  # fmt: skip

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer; so is a schedule that lacks its settings."""
        with as_user_error(f"scheduler {self.args.lr_scheduler_type.value}"):
            return super().create_scheduler(*args, **kwargs)

    def begin_state(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer; but intervals are this run's, not those of the checkpoint's run."""
        found = super().begin_state(*args, **kwargs)
        self.state.compute_steps(self.args, self.state.max_steps)
        return found

    def run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer, which would make a step too many on resuming after the last one.

        That is also the one after which early stopping ended the run.
        """
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super().run_epoch(*args, **kwargs)

    def load_weights(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        """Nothing: weights come with the optimizer's state, as precise as it updates them."""

    def load_optimizer(self, checkpoint: str | None) -> None:
        """From any engine's checkpoint; peak rate and decay are this run's, not those of it."""
        if checkpoint is None:
            return
        if self._keeps_own_files:
            super().load_optimizer(checkpoint)
        else:
            held = self._holding()
            scale = elastic.load(Path(checkpoint), held, self.lr_scheduler, self.runtime)
            set_loss_scale(held.zero, self.accelerator.scaler, scale)
        set_rates(self.optimizer, self.lr_scheduler, self._rates)

    def save_optimizer(self, output_dir: str) -> None:
        """In the form that every engine reads."""
        if self._keeps_own_files:
            super().save_optimizer(output_dir)
            return
        held = self._holding()
        scale = loss_scale(held.zero, self.accelerator.scaler)
        files = elastic.save(Path(output_dir), held, self.lr_scheduler, scale, self.runtime)
        if self.async_save and self.unwritten is not None and self._can_copy(held):
            self.unwritten += files
        else:
            for file in files:
                file.write()

    def _can_copy(self, held: Holding) -> bool:
        """Whether memory holds a copy of the state, to be written beside training; else says so."""
        needed, free = elastic.held_bytes(held, self.runtime), free_memory()
        fits = needed <= COPIED * free
        if not fits and not self._told_of_memory:
            self._told_of_memory = True
            logger.warning(
                "saving: training waits for the disk, as a copy of the optimizer's state takes "
                "%.1f GiB and this process has %.1f GiB of memory to spare",
                needed / 2**30, free / 2**30,
            )  # fmt: skip
        return fits

    _told_of_memory = False

    def save_scaler(self, output_dir: str) -> None:
        """Nothing: the scale of the loss is among the optimizer's state."""

    def load_scaler(self, checkpoint: str | None) -> None:
        """Nothing, as for ``save_scaler``."""

    def load_best_model(self) -> None:
        """As Trainer, but from the form that every engine reads, where it was saved."""
        best = self._whole_best()
        if not elastic.is_elastic(best):
            super().load_best_model()
            return
        logger.info("loads the best model, of %s", best.name)
        elastic.load_weights(best, self._holding())

    def load_random_state(self, checkpoint: str | None) -> None:
        """As Trainer on as many processes as before; on others, random numbers are drawn anew."""
        before = checkpoint and written_on(Path(checkpoint))
        if not before or before == self.args.world_size:
            super().load_random_state(checkpoint)
            return
        logger.info(
            "goes on on %d processes in place of %d: dropout, if any, draws other numbers",
            self.args.world_size, before,
        )  # fmt: skip
        elastic.draw_anew(self.args.seed, self.state.global_step, self.args.process_index)

    def save_weights(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As Trainer, without its pickled arguments (config.yaml says the same, and safely).

        Raises ``IncompleteWeights`` if what lies on disk is not the whole model.
        """
        model = self.accelerator.unwrap_model(self.model)
        if state_dict:
            state_dict = without_twins(state_dict, model)
        with without_card(model), as_it_was(model):
            super().save_weights(output_dir, state_dict)
        if self.runtime.is_main:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            if hasattr(model, "get_base_model"):
                complete_adapter(folder, model)
            check_weights(folder, model)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer; returns on every rank when rank 0 has written the files."""
        super().save_model(*args, **kwargs)
        self.runtime.wait()

    def release(self) -> None:
        """Let go of model, optimizer and gradients, for what comes next; it trains no more."""
        self.accelerator.free_memory()
        for holder in (self, self.callback_handler):
            holder.model = holder.optimizer = holder.lr_scheduler = None
        self.model_wrapped = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def set_rates(optimizer: Any, scheduler: Any, rates: list[tuple[float, float | None]]) -> None:
    """Give an optimizer and its schedule, where they stand, other peak rates and weight decays.

    rates: peak rate and decay of every parameter group.
    """
    for group, (rate, decay) in zip(optimizer.param_groups, rates, strict=True):
        before = group.get("initial_lr", rate)
        if before != rate:  # an equal one is left as it is, to the last bit
            group["lr"] *= rate / before
            group["initial_lr"] = rate
        if decay is not None:
            group["weight_decay"] = decay
    schedule = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = [rate for rate, _ in rates]
        tell_rates(schedule, [group["lr"] for group in optimizer.param_groups])


def free_memory() -> int:
    """Bytes of this machine's memory that could be used: this process's share."""
    try:
        said = Path("/proc/meminfo").read_text(encoding="utf-8")
        available = 1024 * int(said.partition("MemAvailable:")[2].split()[0])
    except OSError:  # not Linux
        import psutil

        available = psutil.virtual_memory().available
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def device_memory(device: torch.device) -> int:
    """Bytes of this process's device; of a CPU, this process's share of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _keep_scores_precise(plugin: Any) -> None:
    """Half precision computes, but log-probs leave the model, and gradients are summed, in fp32."""
    policy = plugin.mixed_precision_policy
    if policy is not None:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=policy.param_dtype, reduce_dtype=torch.float32
        )


@contextlib.contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """One sentence in place of what a library raises for a setting."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{what}: {reason}") from error
