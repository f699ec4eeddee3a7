"""Ropes that change with the length of a sequence: where, and who is on which side.

transformers looks for the longest sequence of a forward pass and turns all of them accordingly
(types longrope and dynamic), so that a score would depend on its neighbours. Here batches say which
sequences share a rope, and ``ropes`` turns each by its own length. Answers of a pair that need
unlike ropes cannot share their prompt: such a pair stands apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from orpo_dist.scoring.model_config import parts
from orpo_dist.scoring.parcel import Parcel
from orpo_dist.scoring.ragged import cut

LENGTH_DEPENDENT = ("dynamic", "longrope")  # rope types of transformers


@dataclass(frozen=True)
class Switch:
    """at: tokens beyond which a rope changes for the whole sequence. exact: with every length."""

    at: int
    exact: bool


@dataclass(frozen=True)
class Sides(Parcel):
    """Which sequences share a rope.

    Packed: order (T,) the tokens side by side, sizes how many are on each, back (T,) where a token
    lies in that order. Padded: back (R,) the side of each row, sizes the tokens of the longest row
    on each; order is empty. positions: (1, T) where the sequence is shared by several ranks, and
    back is of this rank's tokens alone.
    """

    order: Tensor
    back: Tensor
    sizes: tuple[int, ...]
    positions: Tensor | None = None


def changing(config: Any) -> Iterator[tuple[dict[str, Any], Switch]]:
    """The length-dependent ropes of one config (one, or one a kind of layer)."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(found, dict):
        return
    inner = [value for value in found.values() if isinstance(value, dict)]
    for rope in inner or [found]:
        kind = rope.get("rope_type", rope.get("type"))
        if kind in LENGTH_DEPENDENT:
            at = rope.get("original_max_position_embeddings")
            at = at or getattr(config, "original_max_position_embeddings", None)
            if at := at or getattr(config, "max_position_embeddings", None):
                yield rope, Switch(at, kind == "dynamic")


def switches(config: Any) -> tuple[Switch, ...]:
    """Where ropes of a model change."""
    return tuple({switch: None for part in parts(config) for _, switch in changing(part)})


def sides(found: tuple[Switch, ...], lengths: np.ndarray) -> np.ndarray:
    """A number for each length, the same where the ropes are; of the same shape."""
    keys = [
        np.where(lengths > switch.at, lengths if switch.exact else 1, 0).ravel() for switch in found
    ]
    if not keys:
        return np.zeros(lengths.shape, dtype=np.int64)
    return np.unique(np.stack(keys, 1), axis=0, return_inverse=True)[1].reshape(lengths.shape)


def stand_apart(found: tuple[Switch, ...], lengths: np.ndarray) -> np.ndarray:
    """Pairs whose answers need unlike ropes, so that they cannot share their prompt, (B,) bool.

    lengths: (B, 3) of prompt, chosen, rejected.
    """
    own = sides(found, lengths[:, :1] + lengths[:, 1:])
    return own[:, 0] != own[:, 1]


def packed_sides(
    found: tuple[Switch, ...], lengths: np.ndarray, apart: np.ndarray
) -> dict[str, np.ndarray]:
    """The arrays of ``Sides`` of a packed batch, in which these pairs stand apart; none if on one.

    lengths: (B, 3); apart: (B,).
    """
    own = sides(found, lengths[:, :1] + lengths[:, 1:])
    sizes = lengths[:, 1:].copy()
    sizes[:, 0] += lengths[:, 0]
    sizes[:, 1] += lengths[:, 0] * apart
    of_token = np.repeat(own.ravel(), sizes.ravel())
    if of_token.min() == of_token.max():
        return {}
    order = np.argsort(of_token, kind="stable")
    return {"order": order, "back": np.argsort(order), "sizes": np.bincount(of_token)}


def part_of_sides(
    arrays: dict[str, np.ndarray], positions: np.ndarray, part: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The same for one part (rank, of how many) of a sequence: a rope looks at its whole length.

    positions: (1, T) of the whole.
    """
    tokens = positions.shape[1]
    filler = np.arange(tokens, tokens + -tokens % part[1])
    order = np.append(arrays.get("order", np.arange(tokens)), filler)
    sizes = arrays.get("sizes", np.array([tokens])).copy()
    sizes[-1] += len(filler)
    return {
        "order": order,
        "back": cut(np.argsort(order), part),
        "sizes": sizes,
        "positions": np.append(positions, 0 * filler[None], 1),
    }


def padded_sides(found: tuple[Switch, ...], lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The same of padded rows, lengths: (R,)."""
    own = sides(found, lengths)
    if own.min() == own.max():
        return {}
    sizes = np.zeros(own.max() + 1, dtype=np.int64)
    np.maximum.at(sizes, own, lengths)
    return {"order": own[:0], "back": own, "sizes": sizes}


def sides_of(arrays: Mapping[str, np.ndarray], tensors: Mapping[str, Tensor]) -> Sides | None:
    """From such arrays, and their tensors under names that begin with ``side_``."""
    if not arrays:
        return None
    sizes = tuple(arrays["sizes"].tolist())
    positions = tensors.get("side_positions")
    return Sides(tensors["side_order"], tensors["side_back"], sizes, positions)


_sides: ContextVar[Sides | None] = ContextVar("sides", default=None)


@contextlib.contextmanager
def turning(found: Sides | None) -> Iterator[None]:
    """Within it ropes turn the sequences of a batch side by side; None: all as one."""
    token = _sides.set(found)
    try:
        yield
    finally:
        _sides.reset(token)


def sides_now() -> Sides | None:
    """Those of the batch that is being computed."""
    return _sides.get()
