"""The token budget where trying is out of the question: under engines that shard weights.

A trial that runs out of memory there leaves the other ranks waiting. The plan's arithmetic, with
the micro-batch traced, says what fits; rank 0 computes it, for all.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch

from orpo_dist.batching.steps import StepPlan
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.engine import Engine
from orpo_dist.engines.runtime import Runtime
from orpo_dist.planning.estimate import Estimator, Machine
from orpo_dist.planning.plan import most_pairs_that_fit, pairs_at_most
from orpo_dist.planning.skeleton import method_of
from orpo_dist.scoring.packed_forward import causal_model
from orpo_dist.upstream.hf_models import whole_weights

logger = logging.getLogger("orpo_dist")


def planned_budget(model: Any, config: ORPOConfig, plan: StepPlan, here: Runtime) -> int:
    """Tokens of a micro-batch that fit on every rank, by the plan's arithmetic."""
    hf_config = causal_model(model).config
    budget = here.on_main(lambda: _budget(hf_config, config, plan, here.engine, machine_of(here)))
    return -here.agree_on_most(-budget)


def machine_of(here: Runtime) -> Machine:
    """This machine, as the plan of a run on it sees it."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", here.world_size))
    if not torch.cuda.is_available():
        import psutil

        memory = psutil.virtual_memory().total / 2**30
        return Machine(here.world_size, memory, per_machine=local, gpu=False)
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
    return Machine(here.world_size, memory, per_machine=local)


def _budget(
    hf_config: Any, config: ORPOConfig, plan: StepPlan, engine: Engine, machine: Machine
) -> int:
    prompt, chosen, rejected = (int(n) for n in plan.lengths[plan.sizes.argmax()])
    size = int(plan.sizes.max())
    per_rank = math.ceil(plan.global_batch / plan.world_size)
    estimator = Estimator(hf_config, config, machine, (prompt, chosen, rejected))
    most = pairs_at_most(config, size, per_rank, machine.gpu)
    try:
        with whole_weights():
            pairs, _ = most_pairs_that_fit(
                estimator, engine, method_of(config), config.gradient_checkpointing, per_rank, most
            )
    except Exception as error:  # an architecture that does not run without data
        fallback = config.batch_size * size
        logger.warning(
            "max_tokens_per_microbatch auto: %d, batch_size pairs, as memory could not be planned "
            "(%s: %s); set it to fill the GPU",
            fallback, type(error).__name__, str(error).partition("\n")[0],
        )  # fmt: skip
        return fallback
    logger.info(
        "max_tokens_per_microbatch auto: %d under %s, by the arithmetic of 'orpo-dist plan'",
        pairs * size, engine,
    )  # fmt: skip
    return pairs * size
