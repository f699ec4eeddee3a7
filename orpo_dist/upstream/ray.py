"""Ray: a cluster on this machine alone, and workers without what outlives a trial."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from orpo_dist.upstream.register import reaches_for

CALLBACKS = "ray.train.v2._internal.callbacks"
REPEAT = "__trial_index__"  # in a trial's config: which of the trials with these settings


@reaches_for(
    "ray._private.worker:init@_node_ip_address",
    because="a cluster of one machine must not depend on that machine's address, which may change",
    upstream="ray/_private/worker.py, init (2.60), whose documentation names it",
    until="ray.init takes the address of this node",
)
def on_loopback() -> dict[str, Any]:
    """What ``ray.init`` has to be told for a cluster that this machine alone can see."""
    return {"_node_ip_address": "127.0.0.1"}


@reaches_for(
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._create_default_callbacks()",
    f"{CALLBACKS}.placement_group_callback:PlacementGroupCleanerCallback",
    f"{CALLBACKS}.datasets:DatasetsCallback",
    because="the cleaner is an actor that outlives the sweep and asks a dashboard that may not be "
    "there, and the callback for datasets starts a process for none",
    upstream="ray/train/v2/api/data_parallel_trainer.py (2.60)",
    until="a TorchTrainer can be told which callbacks it has",
)
def lean_trainer(*args: Any, **kwargs: Any) -> Any:
    """Ray's ``TorchTrainer`` without the callbacks that a trial here has no use for."""
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return without_unused(super()._create_default_callbacks())

    return Trainer(*args, **kwargs)


def without_unused(callbacks: Sequence[Any]) -> list[Any]:
    """Ray's callbacks, less the cleaner and that for datasets."""
    unused = ("PlacementGroupCleanerCallback", "DatasetsCallback")
    return [callback for callback in callbacks if type(callback).__name__ not in unused]


@reaches_for(
    f"ray.tune.search.repeater:TRIAL_INDEX={REPEAT}",
    because="trials with the same settings get seeds of their own, by their number",
    upstream="ray/tune/search/repeater.py, TRIAL_INDEX (2.60)",
    until="Repeater hands a trial its number by a public name",
)
def repeat_of(config: Mapping[str, Any]) -> int | None:
    """Which of the trials with the same settings one is; None where there are no others."""
    return config.get(REPEAT)


@reaches_for(
    "ray.train.v2._internal.constants:WORKER_GROUP_START_TIMEOUT_S_ENV_VAR",
    because="workers of a trial wait for machines that are busy or gone, longer than Ray does",
    upstream="ray/train/v2/_internal/constants.py (2.60)",
    until="ScalingConfig or RunConfig takes that time",
)
def wait_for_machines(seconds: float) -> None:
    """Let Ray wait this long for the workers of a trial to start."""
    from ray.train.v2._internal import constants

    os.environ[constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] = str(seconds)
