"""Layers that need an answer as a row of its own: those with a state, and those that count tokens.

A recurrent or convolving layer carries what it has read into what follows, in whatever order it
lies. So of a packed sequence it gets a rectangle of rows, prompt and answer each, padded on the
right, where nothing comes after them; and its output is packed again. Everything else of a hybrid,
attention, experts and head, computes every prompt once and no padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from orpo_dist.scoring.parcel import Parcel
from orpo_dist.scoring.ragged import begins, runs
from orpo_dist.scoring.varlen import LayOut


@dataclass(frozen=True)
class Rows(Parcel):
    """Answers with their prompts as a rectangle, of T packed tokens.

    cells: (N, L) which token stands where, the first one where none does. home: (T,) the cell
    (counted row by row) in which a token's output is looked up; again: (A,) tokens that stand in
    another row too, prompts, and again_cells: (A,) where.
    """

    cells: Tensor
    home: Tensor
    again: Tensor
    again_cells: Tensor

    def spread(self, packed: Tensor) -> Tensor:
        """(1, T, …) -> (N, L, …)."""
        cells = LayOut.apply(packed[0], self.cells.flatten(), *self._places)
        return cells.unflatten(0, tuple(self.cells.shape))

    def gathered(self, rows: Tensor) -> Tensor:
        """(N, L, …) -> (1, T, …)."""
        return rows.flatten(0, 1).index_select(0, self.home)[None]

    @property
    def _places(self) -> tuple[Tensor, ...]:
        return self.home, self.again, self.again_cells


def row_arrays(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of ``Rows`` by name. lengths: (B, 3) as in the segments of a packed batch."""
    prompt, chosen, rejected = lengths.T
    start, _, answer = begins(lengths).T
    shared = np.where(rejected > 0, prompt, 0)  # no rejected answer, no second row
    sizes = np.stack([prompt + chosen, shared + rejected], 1)
    width, first = sizes.max(), _first_cells(sizes)
    tokens = runs(
        np.stack([start, start, answer], 1), np.stack([prompt + chosen, shared, rejected], 1)
    )
    cells = np.zeros((sizes.astype(bool).sum(), width), dtype=np.int64)
    kept = sizes[sizes > 0]
    cells[np.arange(width) < kept[:, None]] = tokens
    home = runs(
        np.stack([first[:, 0], first[:, 1] + shared], 1), np.stack([prompt + chosen, rejected], 1)
    )
    return {
        "cells": cells,
        "home": home,
        "again": runs(start, shared),
        "again_cells": runs(first[:, 1], shared),
    }


def _first_cells(sizes: np.ndarray) -> np.ndarray:
    """The first cell of each row, (B, 2), in a rectangle in which rows of no size do not stand."""
    stands = (sizes > 0).ravel()
    return ((stands.cumsum() - stands) * sizes.max()).reshape(sizes.shape)
