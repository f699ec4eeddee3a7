"""The learning rates that a run will meet, known before its first step."""

from __future__ import annotations

from typing import Any

import torch
from transformers import get_scheduler

from orpo_dist.base.types import UserError

SHORT = 1000  # in longer runs no schedule stands at zero for a share that matters
LOUD = 0.25  # from this share of steps without a learning rate on, it is worth a warning


def learning_rates(args: Any, steps: int) -> list[float]:
    """The rates of a run's steps by its ``TrainingArguments``; none where they depend on the run.

    Raises ``UserError`` if the schedule cannot be made.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    try:
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except (TypeError, ValueError) as error:
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise UserError(
            f"scheduler {name}: cannot be made ({str(error).partition(chr(10))[0]}); its options "
            "go under trainer_args: {lr_scheduler_kwargs: {...}}"
        ) from error
    factors = getattr(schedule, "lr_lambdas", None)
    if not factors:
        return []
    return [args.learning_rate * factors[0](step) for step in range(steps)]


def idle_steps(args: Any, steps: int) -> str:
    """A sentence where much of a run has learning rate 0 and so trains nothing; else empty."""
    rates = learning_rates(args, steps) if steps <= SHORT else []
    idle = sum(not rate for rate in rates)
    if not rates or idle < LOUD * steps:
        return ""
    share = "every step" if idle == steps else f"{idle} of {steps} steps"
    warmup = args.get_warmup_steps(steps)
    end = ": nothing is trained" if idle == steps else ""
    return (
        f"{share} of this run has learning rate 0{end}; it has {steps} steps and warms up for "
        f"{warmup} of them from 0: set warmup_ratio 0, or train longer"
    )
