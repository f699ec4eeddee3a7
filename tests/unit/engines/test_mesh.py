"""Ranks as a grid of data and sequences."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.engines import mesh
from orpo_dist.engines.runtime import ALONE, Runtime


def test_alone() -> None:
    assert mesh.mesh_of(ALONE, 1) == mesh.Mesh()


def test_neighbours_share_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[int]] = []

    def new_group(ranks: list[int]) -> Any:
        made.append(ranks)
        return tuple(ranks)

    monkeypatch.setattr(mesh.dist, "new_group", new_group)
    mesh._groups.cache_clear()
    places = [mesh.mesh_of(Runtime(rank=rank, world_size=6), 2) for rank in range(6)]
    mesh._groups.cache_clear()
    assert made == [[0, 1], [2, 3], [4, 5]]  # once a process, however often it asks
    assert [(p.data_rank, p.sequence.rank) for p in places] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    assert {p.data_ranks for p in places} == {3}
    assert [p.sequence.group for p in places] == [(0, 1)] * 2 + [(2, 3)] * 2 + [(4, 5)] * 2


@pytest.mark.parametrize(
    ("size", "world", "said"),
    [
        (4, 6, "6 processes cannot be cut into groups of 4; use 2 or 3 or 6"),
        (2, 1, "1 process cannot be cut into groups of 2; start more (--num-processes)"),
    ],
)
def test_groups_that_cannot_be(size: int, world: int, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")):
        mesh.check_sequence(size, world)
