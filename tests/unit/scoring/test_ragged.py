"""Pairs as flat arrays."""

from __future__ import annotations

import numpy as np

from orpo_dist.base.types import Pair
from orpo_dist.scoring.ragged import FlatPairs, begins, runs


def test_pairs_lie_one_after_another() -> None:
    flat = FlatPairs.of([Pair([1, 2], [3], [4, 5]), Pair([6], [7, 8], [9])])
    assert flat.tokens.tolist() == list(range(1, 10))
    assert flat.lengths.tolist() == [[2, 1, 2], [1, 2, 1]]
    assert flat.starts.tolist() == [[0, 2, 3], [5, 6, 8]]
    assert FlatPairs.of(flat) is flat
    assert FlatPairs.of([]).lengths.shape == (0, 3)


def test_runs_of_integers() -> None:
    firsts, lengths = np.array([10, 3, 7]), np.array([2, 0, 3])
    assert begins(lengths).tolist() == [0, 2, 2]
    assert runs(firsts, lengths).tolist() == [10, 11, 7, 8, 9]
    square = np.array([[1, 2], [3, 4]])
    assert begins(square).tolist() == [[0, 1], [3, 6]]
    assert runs(np.zeros_like(square), square).tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2, 3]
