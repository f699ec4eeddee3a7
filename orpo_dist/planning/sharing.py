"""How many processes have to share a sequence: as few as let the longest pair fit."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from orpo_dist.config import ORPOConfig
from orpo_dist.data.pairs import PairDataset
from orpo_dist.engines.compatibility import accumulation
from orpo_dist.engines.mesh import check_sequence
from orpo_dist.engines.runtime import Runtime
from orpo_dist.planning.budget import machine_of
from orpo_dist.planning.estimate import Estimator, device_gib
from orpo_dist.planning.skeleton import method_of
from orpo_dist.upstream.hf_models import whole_weights

logger = logging.getLogger("orpo_dist")


def shared_by(
    config: ORPOConfig, hf_config: Any, pairs: PairDataset | None, here: Runtime
) -> ORPOConfig:
    """The config with ``sequence_parallel`` as a number; all ranks must call this."""
    if config.sequence_parallel != "auto":
        return config
    size = 1
    if pairs is not None and here.world_size > 1:
        size = here.on_main(lambda: _fewest(config, hf_config, pairs.lengths, here))
    config = config.replace(sequence_parallel=size)
    accumulate = accumulation(config, here.world_size)
    return config.replace(gradient_accumulation=accumulate)


def _fewest(config: ORPOConfig, hf_config: Any, lengths: np.ndarray, here: Runtime) -> int:
    """The smallest part of all processes for which one pair fits on each; all where none does."""
    prompt, chosen, rejected = (int(n) for n in lengths[lengths.sum(1).argmax()])
    machine = machine_of(here)
    tokens = prompt + chosen + rejected
    asked = config.gradient_checkpointing
    form = True if asked == "auto" else asked  # which takes the least, if it must
    try:
        with whole_weights():
            estimator = Estimator(hf_config, config, machine, (prompt, chosen, rejected))
            for size in sizes(config, here.world_size):
                parts = estimator.over(size).parts(here.engine, 1, True, form, method_of(config))
                needed = device_gib(parts)
                if needed <= machine.of_process:
                    break
    except Exception as error:  # an architecture that does not run without data
        logger.warning(
            "sequence_parallel auto: 1, as memory could not be planned (%s: %s); set a number",
            type(error).__name__, str(error).partition("\n")[0],
        )  # fmt: skip
        return 1
    fits = needed <= machine.of_process
    logger.log(
        logging.INFO if fits else logging.WARNING,
        "sequence_parallel auto: %d, as the longest pair, of %d tokens, takes %.1f GiB of %.1f on "
        "each process%s", size, tokens, needed, machine.of_process,
        "" if fits else ": too much even so; expect it to run out of memory",
    )  # fmt: skip
    return size


def sizes(config: ORPOConfig, processes: int) -> list[int]:
    """Processes to a sequence, as it is asked for; of ``auto`` all that there can be."""
    if config.sequence_parallel != "auto":
        check_sequence(config.sequence_parallel, processes)
        return [config.sequence_parallel]
    return [size for size in range(1, processes + 1) if processes % size == 0]
