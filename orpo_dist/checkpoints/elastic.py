"""Checkpoints in one form, which every engine writes and reads on any number of processes.

In ``optimizer/`` of a checkpoint lie, as safetensors, the weights that train and what the optimizer
keeps for each of them, in the precision in which they are updated (``pieces``), and ``state.json``
with the rest: counts, settings of parameter groups, the schedule, the loss scale. Weights that do
not train come from the model that the run began with.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orpo_dist.base.types import UserError
from orpo_dist.checkpoints.pieces import Piece, Pieces, Unwritten, unwritten
from orpo_dist.checkpoints.shards import Holding, is_count, publish
from orpo_dist.engines.runtime import Runtime
from orpo_dist.runs.folder import read_json, write_json
from orpo_dist.upstream.bitsandbytes import page_again

FOLDER = "optimizer"
STATE = "state.json"
# Settings of a parameter group that depend on where it runs, not on what was trained.
MACHINE = ("params", "fused", "foreach", "capturable", "differentiable")


def is_elastic(checkpoint: Path) -> bool:
    """Whether a checkpoint is in this form; others hold what one engine alone can read."""
    return (checkpoint / FOLDER / STATE).exists()


def require_elastic(checkpoint: Path) -> None:
    """``UserError`` for a checkpoint that is not in this form."""
    if not is_elastic(checkpoint):
        raise UserError(
            f"resume_from_checkpoint {checkpoint}: lacks {FOLDER}/{STATE}, from which a run goes "
            "on: it was written by an earlier version, by zero3_nvme, or with save_only_model; "
            "start anew with its weights as --model"
        )


def save(
    checkpoint: Path, held: Holding, schedule: Any, scale: Any, here: Runtime
) -> Iterator[Unwritten]:
    """Write what this rank holds, but for the files that are returned; all ranks together.

    Those are the large ones, copied one by one as they are asked for, and whoever asks writes them.
    schedule: the learning rates'. scale: of the loss, from ``loss_scale``, or None.
    """
    folder = checkpoint / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    cut = not here.agree_on_most(not held.elementwise)
    if not cut and (here.is_main or not held.replicated):
        with held.groups():
            torch.save(held.optimizer.state_dict()["state"], folder / _own_file(here.rank))
    if here.is_main:
        content = {
            "engine": here.engine.name,
            "world_size": here.world_size,
            "replicated": held.replicated,
            "cut": cut,
            "counts": {name: _counts(held, name) for name in held.keys} if cut else {},
            "groups": [
                {k: v for k, v in group.items() if k not in MACHINE}
                for group in held.optimizer.param_groups
            ],
            "schedule": schedule.state_dict(),
            "loss_scale": scale,
        }
        write_json(folder / STATE, json.loads(json.dumps(content, default=_plain)))
    return unwritten(folder, here.rank, _pieces(held, here, cut))


def held_bytes(held: Holding, here: Runtime) -> int:
    """About what the files take that ``save`` leaves to be written by this rank."""
    every = 0
    for shard in held.shards:
        key = held.keys[shard.name]
        kinds = [k for k, value in held.state(shard.name).items() if not is_count(k, value, key)]
        every += shard.weight.nbytes * (1 + len(kinds))
    return every // here.world_size if held.replicated else every


def _pieces(held: Holding, here: Runtime, cut: bool) -> Iterator[Piece]:
    """What this rank has to write: its own, or where all hold the same, its share."""
    loads = [0] * here.world_size
    for shard in held.shards:
        if held.replicated:
            lightest = loads.index(min(loads))
            loads[lightest] += shard.weight.numel()
            if lightest != here.rank:
                continue
        yield Piece(shard.name, "weight", shard.start, shard.weight)
        key = held.keys[shard.name]
        for kind, value in held.state(shard.name).items() if cut else ():
            if isinstance(value, Tensor) and not is_count(kind, value, key):
                yield Piece(shard.name, kind, shard.start, shard.of(value))


def _counts(held: Holding, name: str) -> dict[str, float]:
    key, state = held.keys[name], held.state(name)
    return {kind: float(value) for kind, value in state.items() if is_count(kind, value, key)}


def _plain(value: Any) -> Any:
    """What JSON does not know, in a schedule or a parameter group."""
    if isinstance(value, deque):
        return list(value)
    if isinstance(value, Tensor | np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} in a schedule or parameter group cannot be saved")


def _own_file(rank: int) -> str:
    return f"uncut-{rank:05d}.pt"


def load(checkpoint: Path, held: Holding, schedule: Any, here: Runtime) -> Any:
    """Go on from what any engine has written; returns its loss scale, or None.

    All ranks together. Raises ``UserError`` if it is of another model, or cannot be cut anew.
    """
    require_elastic(checkpoint)
    load_weights(checkpoint, held)
    folder = checkpoint / FOLDER
    content = read_json(folder / STATE)
    if content["cut"]:
        with Pieces(folder) as pieces:
            _load_state(held, pieces, content["counts"], checkpoint)
    else:
        _load_uncut(checkpoint, content, held, here)
    page_again(held.optimizer)
    _load_groups(held.optimizer.param_groups, content["groups"], checkpoint)
    schedule.load_state_dict(content["schedule"])
    return content["loss_scale"]


def load_weights(checkpoint: Path, held: Holding) -> None:
    """The weights of a checkpoint alone; all ranks together."""
    with Pieces(checkpoint / FOLDER) as pieces:
        _check_fit(checkpoint, pieces, held.sizes)
        for shard in held.shards:
            pieces.read_into(shard.weight, shard.name, "weight", shard.start)
    publish(held)


def _check_fit(checkpoint: Path, pieces: Pieces, sizes: dict[str, int]) -> None:
    """``UserError`` for the checkpoint of another model or of another adapter."""
    where = f"resume_from_checkpoint {checkpoint}: does not fit here:"
    for name in sorted(pieces.names() ^ set(sizes)):
        place = "there" if name in sizes else "here"
        raise UserError(f"{where} {name} is not among what trains {place}")
    for name, size in sizes.items():
        if pieces.size(name) != size:
            raise UserError(f"{where} {name} has {pieces.size(name)} numbers there, {size} here")


def _load_state(
    held: Holding, pieces: Pieces, counts: dict[str, dict[str, float]], checkpoint: Path
) -> None:
    """The optimizer's state, which is made where it does not exist before the first step."""
    made: dict[Tensor, dict[str, float]] = {}
    for name, key in held.keys.items():
        own, state = counts.get(name, {}), held.optimizer.state
        for kind in pieces.kinds(name):
            if kind not in state[key]:
                state[key][kind] = torch.zeros_like(key, dtype=_kept_in(held.optimizer, key))
        if own != made.setdefault(key, own):
            raise UserError(
                f"resume_from_checkpoint {checkpoint}: its parameters have made different numbers "
                "of steps, and DeepSpeed counts one for all; go on with ddp or fsdp2"
            )
        for kind, value in own.items():
            state[key][kind] = _count(held.optimizer, key, kind, value)
    for shard in held.shards:
        state = held.state(shard.name)
        for kind in pieces.kinds(shard.name):
            pieces.read_into(shard.of(state[kind]), shard.name, kind, shard.start)


def _kept_in(optimizer: Any, key: Tensor) -> torch.dtype:
    """The precision of state that has the shape of the weights: torch's as these, others' fp32."""
    of_torch = type(optimizer).__module__.startswith("torch.optim")
    return key.dtype if of_torch or key.dtype == torch.float64 else torch.float32


def _count(optimizer: Any, key: Tensor, kind: str, value: float) -> Any:
    """A count as this optimizer keeps it: torch's in a tensor, DeepSpeed's and others' as int."""
    if not type(optimizer).__module__.startswith("torch.optim"):
        return int(value) if value.is_integer() else value
    on_device = any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    return torch.tensor(value, dtype=torch.float32, device=key.device if on_device else "cpu")


def _load_uncut(checkpoint: Path, content: dict[str, Any], held: Holding, here: Runtime) -> None:
    """State that is not one number a weight goes on where weights are cut as they were."""
    written = str(content["engine"]), int(content["world_size"])
    same = content["replicated"] and held.replicated
    if not same and written != (here.engine.name, here.world_size):
        raise UserError(
            f"resume_from_checkpoint {checkpoint}: the state of this optimizer cannot be cut "
            f"anew; go on with 'orpo-dist launch {written[0]} --num-processes {written[1]}'"
        )
    path = checkpoint / FOLDER / _own_file(0 if held.replicated else here.rank)
    state = torch.load(path, map_location="cpu", weights_only=True)
    with held.groups():
        groups = held.optimizer.state_dict()["param_groups"]
        held.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _load_groups(
    groups: list[dict[str, Any]], written: list[dict[str, Any]], checkpoint: Path
) -> None:
    if len(groups) != len(written):
        raise UserError(
            f"resume_from_checkpoint {checkpoint}: has {len(written)} parameter groups, not "
            f"{len(groups)}"
        )
    for group, settings in zip(groups, written, strict=True):
        for name, value in settings.items():
            if name in group:
                group[name] = tuple(value) if isinstance(group[name], tuple) else value


def draw_anew(seed: int, step: int, rank: int) -> None:
    """Random numbers that follow from where a run goes on, on another number of processes."""
    drawn = np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]
    random.seed(int(drawn))
    np.random.seed(int(drawn))
    torch.manual_seed(int(drawn))  # of all devices
