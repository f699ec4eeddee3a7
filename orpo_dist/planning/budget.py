"""What fits by the plan's arithmetic, with the micro-batch traced; rank 0 computes it, for all.

The token budget where trying is out of the question: under engines that shard weights a trial that
runs out of memory leaves the other ranks waiting. And which layers are recomputed, where that is
``auto``.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import torch

from orpo_dist.base.reasons import reason_of
from orpo_dist.base.types import UserError
from orpo_dist.batching.steps import StepPlan
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.engine import Engine
from orpo_dist.engines.runtime import Runtime
from orpo_dist.models.recomputing import Form, forms_of
from orpo_dist.planning.estimate import Estimator, Machine, device_gib
from orpo_dist.planning.plan import most_pairs_that_fit, pairs_at_most
from orpo_dist.planning.skeleton import method_of
from orpo_dist.scoring.packed_forward import causal_model
from orpo_dist.upstream.hf_models import whole_weights

ENOUGH = 8192  # tokens of a micro-batch; with more a GPU is hardly faster

logger = logging.getLogger("orpo_dist")


def planned_budget(model: Any, config: ORPOConfig, plan: StepPlan, here: Runtime) -> int:
    """Tokens of a micro-batch that fit on every rank, by the plan's arithmetic."""
    hf_config = causal_model(model).config
    budget = here.on_main(lambda: _budget(hf_config, config, plan, here.engine, machine_of(here)))
    return -here.agree_on_most(-budget)


def planned_form(model: Any, config: ORPOConfig, plan: StepPlan, here: Runtime) -> Form:
    """The fastest form of ``gradient_checkpointing`` that fits on every rank, said in a line."""
    if not torch.cuda.is_available():
        logger.info("gradient_checkpointing auto: false, as always on a CPU")
        return False
    core = causal_model(model)
    forms = forms_of(core)
    chosen = here.on_main(
        lambda: _form(core.config, config, plan, here.engine, machine_of(here), forms)
    )
    return forms[here.agree_on_most(forms.index(chosen))]


def _form(
    hf_config: Any,
    config: ORPOConfig,
    plan: StepPlan,
    engine: Engine,
    machine: Machine,
    forms: Sequence[Form],
) -> Form:
    """The first form, of ``forms`` from fast to slow, with which a micro-batch fits that is large
    enough to keep the device busy; else the one with which the largest fits.

    A micro-batch of ENOUGH tokens is, or what is the most anyway.
    """
    size, found = int(plan.sizes.max()), {}
    estimator = _estimator(hf_config, config, plan, machine)
    try:
        for form in forms:
            pairs, gib = _pairs(estimator, plan, engine, form)
            fits = gib <= machine.usable
            found[form] = pairs * size if fits else 0
            most = pairs_at_most(config, size, _per_rank(plan), machine.gpu) * size
            if found[form] >= min(ENOUGH * config.ranks_per_sequence, most):
                break
        else:
            form = max(found, key=found.__getitem__) if any(found.values()) else forms[-1]
    except UserError:
        raise
    except Exception as error:  # an architecture that does not run without data
        logger.warning(
            "gradient_checkpointing auto: %s, as memory could not be planned (%s); set it",
            _said(forms[-1]), reason_of(error),
        )  # fmt: skip
        return forms[-1]
    tried = ", ".join(f"{_said(form)} {tokens}" for form, tokens in found.items())
    logger.info(
        "gradient_checkpointing auto: %s, by the arithmetic of 'orpo-dist plan' (tokens of a "
        "micro-batch that fit: %s)",
        _said(form), tried,
    )  # fmt: skip
    return form


def _said(form: Form) -> str:
    return str(form).lower()


def _per_rank(plan: StepPlan) -> int:
    return math.ceil(plan.global_batch / plan.world_size)


def _estimator(hf_config: Any, config: ORPOConfig, plan: StepPlan, machine: Machine) -> Estimator:
    prompt, chosen, rejected = (int(n) for n in plan.lengths[plan.sizes.argmax()])
    return Estimator(hf_config, config, machine, (prompt, chosen, rejected))


def _pairs(estimator: Estimator, plan: StepPlan, engine: Engine, form: Form) -> tuple[int, float]:
    """Pairs of the longest size in a micro-batch that fits, at least one; and GiB of it all."""
    config, per_rank = estimator.config, _per_rank(plan)
    most = pairs_at_most(config, int(plan.sizes.max()), per_rank, estimator.machine.gpu)
    with whole_weights():
        pairs, parts = most_pairs_that_fit(
            estimator, engine, method_of(config), form, per_rank, most
        )
    return pairs, device_gib(parts)


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
    size = int(plan.sizes.max())
    try:
        estimator = _estimator(hf_config, config, plan, machine)
        pairs, _ = _pairs(estimator, plan, engine, config.gradient_checkpointing)
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
