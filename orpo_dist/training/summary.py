"""One line of what the settings amount to on this machine, this launch and these data."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from orpo_dist.base.console import count
from orpo_dist.batching.loader import total_steps
from orpo_dist.config import ORPOConfig
from orpo_dist.config.schedules import CONSTANT, NAMES
from orpo_dist.training.trainer import ORPOTrainer
from orpo_dist.upstream.bitsandbytes import weights_per_number
from orpo_dist.upstream.deepspeed import whole_size


def derived_truth(trainer: ORPOTrainer) -> str:
    """Model, data, one step, the machine and the objective, as they will really be."""
    config, model, plan = trainer.config, trainer.model, trainer.train_plan
    assert plan is not None
    trains, total = trainable_share(model)
    adapter = f"LoRA r={config.lora_r}, " if config.peft else ""
    base = f"{config.quantization} base, " if config.quantization else ""
    attention = "packed" if trainer.scorer.packed else "padded"
    precision = {"none": "fp32"}.get(str(config.mixed_precision), config.mixed_precision)
    world, sequence = trainer.runtime.world_size, trainer.mesh.sequence.size
    shared = f", {sequence} to a sequence" if sequence > 1 else ""
    return (
        f"{Path(str(config.model)).name}: {adapter}{base}{count(trains)} of {count(total)} "
        f"parameters train | {len(plan.lengths)} pairs{_forms(trainer)}, {plan.steps_per_epoch} "
        f"steps an epoch, {total_steps(config, plan)} in all | a step: {_step(trainer)} | "
        f"{trainer.runtime.engine} on {world} process{'es' * (world > 1)}{shared}, "
        f"{trainer.args.device.type}, {precision}, {attention} attention{_layers(trainer)} | "
        f"{_alpha(config)}, "
        f"{config.loss_form} loss over the {config.nll_scope.replace('_', ' ')}"
    )


def settled_facts(trainer: ORPOTrainer) -> dict[str, Any]:
    """What was decided for this machine, launch and model: for run.json."""
    config, plan, args = trainer.config, trainer.train_plan, trainer.args
    assert plan is not None
    limits = trainer.encoder.limits
    return {
        "engine": str(trainer.runtime.engine),
        "processes": trainer.runtime.world_size,
        "sequence_parallel": trainer.mesh.sequence.size,
        "device": args.device.type,
        "precision": config.mixed_precision,
        "attention": "packed" if trainer.scorer.packed else "padded",
        "kernels": trainer.kernels,
        "gradient_checkpointing": config.gradient_checkpointing,
        "activation_offload": config.activation_offload,
        "pairs_per_step": plan.global_batch,
        "gradient_accumulation": config.gradient_accumulation,
        "pairs_per_microbatch": plan.micro_batch,
        "tokens_per_microbatch": plan.token_budget,
        "steps": total_steps(config, plan),
        "max_prompt_length": limits.prompt,
        "max_completion_length": limits.completion,
        "max_seq_length": limits.sequence,
        "context": limits.context,
        "eval_strategy": config.eval_strategy,
        "save_strategy": config.save_strategy,
        "logging_steps": config.logging_steps,
    }


def _layers(trainer: ORPOTrainer) -> str:
    """What computes the layers, and which of them again in the backward pass."""
    config = trainer.config
    said = {"liger": "Liger's layers", "compile": "compiled layers"}.get(str(trainer.kernels), "")
    if not said and config.kernels == "auto":
        said = "kernels auto: the model's own layers"
    again = config.gradient_checkpointing
    recomputed = f"recomputed {'all' if again is True else again}" if again else ""
    away = "their inputs on the host" if config.activation_offload else ""
    return "".join(f", {part}" for part in (said, recomputed, away) if part)


FORMS = {
    "messages": "messages in the chat template",
    "wrapped": "plain prompts in the chat template",
    "rendered": "rendered text as it is",
    "plain": "plain text as it is",
}


def _forms(trainer: ORPOTrainer) -> str:
    """In which form the prompts came, and what was made of them; with counts if in several."""
    forms = trainer.train_dataset.report.get("forms", {})
    alone = len(forms) == 1
    said = [FORMS[form] if alone else f"{n} {FORMS[form]}" for form, n in forms.items()]
    return f" ({'; '.join(said)})" if said else ""


def _step(trainer: ORPOTrainer) -> str:
    """Pairs, tokens and micro-batches of a step; of the first few, since data vary."""
    plan = trainer.train_plan
    assert plan is not None
    first = list(islice(plan.epoch(0, trainer.mesh.data_rank), 20))
    tokens = sum(s.work.tokens if trainer.scorer.packed else s.work.padded for s in first)
    cuts = sorted({len(step.micro_batches) for step in first})
    micro = str(cuts[0]) if len(cuts) == 1 else f"{cuts[0]} to {cuts[-1]}"
    return (
        f"{plan.global_batch} pairs, about {count(tokens // len(first))} tokens, {micro} "
        f"micro-batch{'es' * (cuts[-1] > 1)} per process"
    )


def _alpha(config: ORPOConfig) -> str:
    schedule = config.orpo_alpha_schedule
    if schedule in NAMES:
        how = "" if schedule == CONSTANT else f" by {schedule}"
        return f"alpha {config.orpo_alpha:g}{how}"
    return f"alpha by {schedule}"


def trainable_share(model: Any) -> tuple[int, int]:
    """``(trainable, total)`` numbers of parameters, shards and packed 4-bit weights in full."""
    trains = total = 0
    for parameter in model.parameters():
        count = whole_size(parameter) * weights_per_number(parameter)
        total += count
        trains += count * parameter.requires_grad
    return trains, total
