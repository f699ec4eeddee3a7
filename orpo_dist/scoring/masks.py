"""The mask of a packed forward: not a tensor, but which pairs there are and how far a token sees.

Models ask transformers for their masks once a forward pass and hand them to every layer. In a
packed pass they get a ``PackedMask`` instead, by the same way: so it reaches attention in every
family that takes its masks from there, also where a layer is recomputed in the backward pass, and
it knows the windows and chunks that some families build into the mask alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from orpo_dist.engines.mesh import WHOLE, SequenceGroup
from orpo_dist.scoring.hardware import HERE, Hardware
from orpo_dist.scoring.varlen import VarlenLayout

# (prompt, chosen, rejected) lengths of each pair, in the order in which the pairs lie.
Segments = tuple[tuple[int, int, int], ...]


class Unpackable(Exception):
    """Why a model cannot be packed, as what follows its name in a sentence."""


@dataclass(frozen=True)
class PackedMask:
    """Prompt and chosen answer see themselves, the rejected answer sees the prompt and itself.

    varlen: where the sequences lie for a variable-length kernel, where one is to be used. window: a
    token sees itself and so many less one before it. chunk: it sees nothing before the last
    multiple of that. Both are None where no sequence is longer. hardware: what attends. sequence:
    who has which part of the tokens.
    """

    segments: Segments
    varlen: VarlenLayout | None = None
    window: int | None = None
    chunk: int | None = None
    hardware: Hardware = HERE
    sequence: SequenceGroup = WHOLE

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(p + max(c, r) for p, c, r in self.segments)

    def limited(self, size: int, config: Any) -> PackedMask:
        """The same pairs under a mask of that size, which is the window or the chunk of a config.

        Asked of the config and not of the mask, whose values may lie on a device.
        """
        if size >= self.longest:
            return self
        kinds = {"window": "sliding_window", "chunk": "attention_chunk_size"}
        kind = [name for name, setting in kinds.items() if getattr(config, setting, None) == size]
        if len(kind) != 1:
            raise Unpackable("has windows that its config does not tell from chunks")
        return replace(self, window=size) if kind == ["window"] else replace(self, chunk=size)

    def visible(self, rows: int, columns: int, device: torch.device) -> Tensor | None:
        """Which of ``columns`` keys the last ``rows`` tokens see; None: all that come before."""
        if self.window is None and self.chunk is None and rows == columns:
            return None
        row = torch.arange(columns - rows, columns, device=device)[:, None]
        column = torch.arange(columns, device=device)
        seen = column <= row
        if self.window is not None:
            seen = seen & (row - column < self.window)
        if self.chunk is not None:
            seen = seen & (row // self.chunk == column // self.chunk)
        return seen


_packing: ContextVar[PackedMask | None] = ContextVar("packing", default=None)


@contextlib.contextmanager
def packing(mask: PackedMask | None) -> Iterator[None]:
    """Within it models that ask for a mask get this one; None: again what they would get."""
    token = _packing.set(mask)
    try:
        yield
    finally:
        _packing.reset(token)


def is_packing() -> bool:
    """Whether this is a packed forward pass; not so where a layer is recomputed."""
    return _packing.get() is not None


def mask_instead_of(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A mask function for transformers: packed in packed passes, else what ``plain`` makes."""

    def mask(*args: Any, **kwargs: Any) -> Any:
        packed = _packing.get()
        if packed is None:
            return plain(*args, **kwargs)
        size = kwargs.get("local_size")
        known = kwargs["mask_function"] is causal_mask_function if size is None else True
        if kwargs.get("use_vmap") or not known:
            raise Unpackable("lets tokens see more or less than what comes before them")
        return packed if size is None else packed.limited(size, kwargs["config"])

    return mask
