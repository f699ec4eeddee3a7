"""``ORPOConfig`` -> transformers' ``TrainingArguments``: where names are translated."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainingArguments

from orpo_dist.base.device import mention_idle_gpus
from orpo_dist.base.types import UserError, noted, refuse
from orpo_dist.config import ORPOConfig
from orpo_dist.config.names import explain_unknown
from orpo_dist.config.schema import Strategy
from orpo_dist.engines.compatibility import accumulation
from orpo_dist.engines.mesh import check_sequence
from orpo_dist.engines.runtime import Runtime
from orpo_dist.models.kernels import why_not_kernels
from orpo_dist.models.model import resolve_precision
from orpo_dist.scoring.metrics import MEANS, named_metrics

# Metrics for which less is better; every other evaluation metric should rise.
FALLING = ("loss", "nll", "perplexity")


class OneDevice(TrainingArguments):
    """A process computes on one device; other GPUs that it sees belong to other processes.

    Trainer would take them all: with ``nn.DataParallel``, which leaves accelerate's bf16 out, and
    with as many times the batch size.
    """

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: 0 or 1."""
        return min(1, super().n_gpu)


def resolve(
    config: ORPOConfig, has_eval: bool, world_size: int = 1, engine: str = "single"
) -> ORPOConfig:
    """The config with every "default: …" that depends on machine, launch and data filled in.

    Raises ``UserError`` for settings that this machine or these data cannot serve.
    """
    found: list[str] = []
    changes: dict[str, Any] = {"load_best_model_at_end": config.keeps_best}
    changes["mixed_precision"] = precision = resolve_precision(config)
    if precision == "fp16" and not torch.cuda.is_available():
        found.append("mixed_precision fp16 needs a GPU; use bf16 or none")
    if config.lora_dtype == "bfloat16" and precision != "bf16":
        found.append(f"lora_dtype bfloat16 needs mixed_precision bf16, and it is {precision}")
    if config.activation_offload and not torch.cuda.is_available():
        found.append(
            "activation_offload needs a GPU: on a CPU activations are in the host's memory anyway; "
            "leave it out"
        )
    if reason := why_not_kernels(config, engine):
        found.append(reason)
    found += _unknown_choices(config)
    with noted(found):
        changes |= _strategies(config, has_eval)
    with noted(found):
        changes["metric_for_best_model"] = _eval_metric(config.metric_for_best_model)
    if config.sequence_parallel != "auto":
        with noted(found):
            check_sequence(config.sequence_parallel, world_size)
            changes["gradient_accumulation"] = accumulation(config, world_size)
    refuse(found)
    return config.replace(**changes)


def _strategies(config: ORPOConfig, has_eval: bool) -> dict[str, Any]:
    """When to evaluate and to save."""
    evaluate = _eval_strategy(config, has_eval)
    save, save_steps = config.save_strategy, config.save_steps
    if config.keeps_best:
        if save not in (None, evaluate):
            raise UserError(
                f"load_best_model_at_end needs save_strategy to equal eval_strategy ({evaluate})"
            )
        save, save_steps = evaluate, save_steps or config.eval_steps
        if evaluate == "steps" and (save_steps or 1) % (config.eval_steps or 1):
            raise UserError(
                f"load_best_model_at_end needs save_steps ({save_steps}) to be a multiple of "
                f"eval_steps ({config.eval_steps})"
            )
    return {
        "eval_strategy": evaluate,
        "save_strategy": save or "epoch",
        "save_steps": save_steps,
    }


def _eval_strategy(config: ORPOConfig, has_eval: bool) -> Strategy:
    """When to evaluate; ``UserError`` if what is asked for needs evaluations there cannot be."""
    keeps_score = config.keeps_best or config.early_stopping_patience is not None
    if (keeps_score or config.eval_strategy not in (None, "no")) and not has_eval:
        raise UserError(
            "evaluation, early stopping and load_best_model_at_end need evaluation data: set "
            "valid_data_path or valid_split"
        )
    if keeps_score and config.eval_strategy == "no":
        raise UserError(
            "early stopping and load_best_model_at_end need eval_strategy steps or epoch"
        )
    return config.eval_strategy or ("epoch" if has_eval else "no")


def _eval_metric(name: str | None) -> str:
    """``eval/loss``, ``eval_loss`` and ``loss`` all mean the same; metrics.jsonl says ``loss``."""
    metric = (name or "loss").removeprefix("eval/").removeprefix("eval_")
    known = ["loss", *named_metrics([0.0] * len(MEANS))]
    if metric not in known:
        close = difflib.get_close_matches(metric, known, n=1, cutoff=0.3)
        guess = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
        raise UserError(f"metric_for_best_model '{name}': is not an evaluation metric; {guess}")
    return metric


def training_arguments(config: ORPOConfig, output_dir: str, runtime: Runtime) -> OneDevice:
    """TrainingArguments for a resolved config on the engine that is up.

    Trainer's own accumulation stays at 1: a planned step is one batch to it.
    """
    mention_idle_gpus("train")
    metric = _eval_metric(config.metric_for_best_model)
    settings: dict[str, Any] = {
        "output_dir": output_dir,
        "seed": config.seed,
        "data_seed": config.seed,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": config.lr,
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "lr_scheduler_type": config.scheduler,
        "optim": _optimizer(config),
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        # Trainer takes bf16 for a GPU matter unless told that there is none.
        "use_cpu": config.mixed_precision == "bf16" and not torch.cuda.is_available(),
        "eval_strategy": config.eval_strategy or "no",
        "eval_steps": config.eval_steps,
        "save_strategy": config.save_strategy or "no",
        "save_steps": config.save_steps or 500,
        "save_total_limit": config.save_total_limit,
        "load_best_model_at_end": config.keeps_best,
        "metric_for_best_model": metric,
        "greater_is_better": not any(word in metric for word in FALLING),
        "logging_steps": config.logging_steps or 10,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": reporters(config),
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,  # the loss depends on everything that trains
        **runtime.trainer_settings(),
        **config.trainer_args,
    }
    if (config.trainer_args.get("dataloader_num_workers") or 0) < 0:
        raise UserError("trainer_args: dataloader_num_workers is below 0; use 0 for no processes")
    try:
        return OneDevice(**settings)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"trainer_args: {_first_line(error)}") from error


def _optimizer(config: ORPOConfig) -> str:
    """AdamW in one kernel on a GPU, instead of a dozen over all weights and their temporaries.

    A resumed run keeps the form of its checkpoint, as torch loads that with the state.
    """
    if config.optimizer == "adamw_torch" and _on_gpu():
        return "adamw_torch_fused"
    return config.optimizer


def _on_gpu() -> bool:
    return torch.cuda.is_available()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unknown_choices(config: ORPOConfig) -> list[str]:
    """Schedules, optimizers, loggers and trainer_args are transformers' own: name the choices."""
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    found = []
    for name, value, kinds in (
        ("scheduler", config.scheduler, SchedulerType),
        ("optimizer", config.optimizer, OptimizerNames),
    ):
        choices = [kind.value for kind in kinds]
        if value not in choices:
            found.append(f"{name} '{value}': is not one of {', '.join(choices)}")
    known = {field.name for field in fields(TrainingArguments)}
    found += [
        f"trainer_args: {explain_unknown(name, known)}"
        for name in config.trainer_args
        if name not in known
    ]
    with noted(found):
        reporters(config)
    return found


def loggers(config: ORPOConfig) -> list[str]:
    """The names in ``log``."""
    return [name.strip() for name in config.log.split(",") if name.strip()]


def reporters(config: ORPOConfig) -> list[str]:
    """The loggers of ``log`` that transformers brings; TensorBoard is set up by the run itself."""
    from transformers.integrations import get_available_reporting_integrations

    wanted = loggers(config)
    available = get_available_reporting_integrations()
    for name in wanted:
        if name not in ("none", "tensorboard", *available):
            raise UserError(
                f"log '{name}': not installed or unknown; here are none, tensorboard"
                + "".join(f", {other}" for other in available if other != "tensorboard")
            )
    return [name for name in wanted if name not in ("none", "tensorboard")]


def default_logging_steps(total_steps: int) -> int:
    """About 50 log lines a run, at most 10 steps apart."""
    return max(1, min(10, total_steps // 50))
