"""Ranks as a grid, data x sequence: every group of neighbours shares the tokens of the same pairs.

Neighbours, as they sit in one machine, whose links are the fast ones.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from orpo_dist.base.types import UserError
from orpo_dist.engines.runtime import Runtime


@dataclass(frozen=True)
class SequenceGroup:
    """This rank among those that share a sequence. group: torch's, None where it is alone."""

    rank: int = 0
    size: int = 1
    group: Any = None


WHOLE = SequenceGroup()


@dataclass(frozen=True)
class Mesh:
    """Where this process stands: data_rank of data_ranks groups, and its place in its own."""

    data_rank: int = 0
    data_ranks: int = 1
    sequence: SequenceGroup = WHOLE


def check_sequence(size: int, world_size: int) -> None:
    """``UserError`` where so many processes are no groups of this size."""
    if world_size % size == 0:
        return
    fitting = [n for n in range(2, world_size + 1) if world_size % n == 0]
    instead = f"use {' or '.join(map(str, fitting))}" if fitting else "start more (--num-processes)"
    raise UserError(
        f"sequence_parallel {size}: {world_size} process{'es' * (world_size > 1)} cannot be cut "
        f"into groups of {size}; {instead}"
    )


def mesh_of(here: Runtime, size: int) -> Mesh:
    """Groups of ``size``; all ranks must call this. Raises ``UserError`` as ``check_sequence``."""
    check_sequence(size, here.world_size)
    data_rank, rank = divmod(here.rank, size)
    group = _groups(here.world_size, size)[data_rank] if size > 1 else None
    return Mesh(data_rank, here.world_size // size, SequenceGroup(rank, size, group))


@functools.cache  # one set for all stages of a run
def _groups(world_size: int, size: int) -> list[Any]:
    return [dist.new_group(list(range(at, at + size))) for at in range(0, world_size, size)]
