"""Checkpoints: what topology wrote one, who may go on from it, and whether weights are whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from orpo_dist.base.types import UserError
from orpo_dist.checkpoints.elastic import is_elastic, require_elastic
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.runtime import Runtime
from orpo_dist.runs.changes import keep_step
from orpo_dist.runs.manifest import facts_of
from orpo_dist.upstream.deepspeed import whole_shape


class IncompleteWeights(RuntimeError):
    """Weights on disk that are not what the model holds."""


def written_on(checkpoint: Path) -> int:
    """The number of processes that wrote a checkpoint; 0 if it does not say."""
    return int(facts_of(checkpoint).get("world_size", 0))


def go_on_from(checkpoint: Path, config: ORPOConfig, runtime: Runtime) -> ORPOConfig:
    """The config to resume with: its global batch is the checkpoint's, so that data go on in order.

    Raises ``UserError`` where this engine or world size cannot read the checkpoint.
    """
    written, where = facts_of(checkpoint), f"resume_from_checkpoint {checkpoint}"
    if runtime.engine.offload != "nvme":
        require_elastic(checkpoint)
    elif is_elastic(checkpoint) or not _same_launch(written, runtime):
        raise UserError(
            f"{where}: {runtime.engine} on {runtime.world_size} reads only its own; go on with "
            "another preset, or start anew with its weights as --model"
        )
    if not written:
        return config
    return keep_step(int(written["global_batch_size"]), config, where)


def _same_launch(written: dict[str, Any], runtime: Runtime) -> bool:
    return (written.get("engine"), written.get("world_size")) == (
        runtime.engine.name,
        runtime.world_size,
    )


def without_twins(weights: dict[str, Any], model: Any) -> dict[str, Any]:
    """Weights without those that loading ties to another again: a head that is the embedding.

    transformers sees that two names are one tensor by its memory, and engines that gather their
    shards bring a copy for each.
    """
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    twins = {
        name
        for name, source in tied.items()
        if name in weights and source in weights and torch.equal(weights[name], weights[source])
    }
    return {name: tensor for name, tensor in weights.items() if name not in twins}


def check_weights(folder: Path, model: Any) -> None:
    """Compare the weights in ``folder`` with the (possibly sharded) model they came from.

    Raises ``IncompleteWeights`` for an empty tensor, a wrong shape, or too few numbers in all.
    """
    saved = saved_shapes(folder)
    expected = expected_shapes(model)
    for name, shape in saved.items():
        if 0 in shape:
            raise IncompleteWeights(f"{folder}: tensor {name} was saved empty")
        if shape != expected.get(name, shape):
            raise IncompleteWeights(
                f"{folder}: tensor {name} was saved as {shape}, but is {expected[name]}"
            )
    found, wanted = (sum(map(math.prod, shapes.values())) for shapes in (saved, expected))
    if found < wanted:
        missing = next((name for name in expected if name not in saved), "?")
        raise IncompleteWeights(
            f"{folder}: holds {found} of {wanted} numbers; missing is for one {missing}"
        )


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in the safetensors files of a folder."""
    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def expected_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes of what has to be saved: the adapter, or else every parameter."""
    adapter = hasattr(model, "get_base_model")
    return {
        name.replace(".default", "") if adapter else name: tuple(whole_shape(parameter))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not adapter
    }
