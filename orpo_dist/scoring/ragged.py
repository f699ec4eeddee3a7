"""Pairs as flat arrays of tokens and lengths, which collation cuts without a loop over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from orpo_dist.base.types import Pair


@dataclass(frozen=True, slots=True)
class FlatPairs:
    """B pairs.

    tokens: (T,) integers, prompt, chosen and rejected answer of every pair one after another.
    lengths: (B, 3) int64, tokens in each of the three.
    """

    tokens: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[Pair] | FlatPairs) -> FlatPairs:
        """The same pairs in this form."""
        if isinstance(pairs, FlatPairs):
            return pairs
        parts = [part for pair in pairs for part in (pair.prompt, pair.chosen, pair.rejected)]
        lengths = np.array([len(part) for part in parts], dtype=np.int64).reshape(-1, 3)
        tokens = np.fromiter(chain.from_iterable(parts), dtype=np.int64, count=lengths.sum())
        return cls(tokens, lengths)

    @property
    def starts(self) -> np.ndarray:
        """Where every part begins among the tokens, (B, 3)."""
        return begins(self.lengths)


def begins(lengths: np.ndarray) -> np.ndarray:
    """Where runs of these lengths begin if they lie one after another; of the same shape."""
    flat = lengths.ravel()
    return (flat.cumsum() - flat).reshape(lengths.shape)


def runs(firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Consecutive integers, one run after another: from each first as many as its length."""
    flat = lengths.ravel()
    return np.arange(flat.sum()) + np.repeat(firsts.ravel() - begins(flat), flat)


def cut(array: np.ndarray, part: tuple[int, int]) -> np.ndarray:
    """One of several equal parts of the last axis, (rank, of how many), zeros added at its end."""
    rank, count = part
    length = -(-array.shape[-1] // count)
    filled = np.zeros((*array.shape[:-1], length * count), dtype=array.dtype)
    filled[..., : array.shape[-1]] = array
    return filled[..., rank * length : (rank + 1) * length]
