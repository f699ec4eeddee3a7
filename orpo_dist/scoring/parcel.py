"""Batches whose tensors lie in one buffer, so that they reach a device in one copy.

A micro-batch is some fifteen small tensors. One by one, each costs the host a launch, and a copy
from memory that is not pinned makes it wait for the device.

Pinned buffers are those of torch's own allocator, which keeps them for the next batch: it notes an
event with every copy from a buffer, and hands the buffer out again once that has come to pass. So a
run allocates as many as are under way at a time, and none is overwritten before it has been copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from orpo_dist.upstream.torch import storage_id

ALIGNMENT = 16  # bytes; every field begins at a multiple


def together(arrays: Mapping[str, np.ndarray], pinned: bool = False) -> dict[str, Tensor]:
    """The arrays as tensors that are views of one buffer. pinned: that a GPU copies by itself."""
    places, size = [], 0
    for array in arrays.values():
        places.append(size)
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    bytes_, held = _buffer(size, pinned)
    for place, array in zip(places, arrays.values(), strict=True):
        bytes_[place : place + array.nbytes].view(array.dtype)[:] = array.ravel()
    buffer = torch.from_numpy(bytes_) if held is None else held
    return {
        name: _view(buffer, place, getattr(torch, array.dtype.name), array.shape)
        for place, (name, array) in zip(places, arrays.items(), strict=True)
    }


def _buffer(size: int, pinned: bool) -> tuple[np.ndarray, Tensor | None]:
    """(size,) bytes, whatever they hold; and, if pinned, the tensor that they are of.

    Otherwise a tensor is made of them when they are written: in a plan it has no numbers.
    """
    if not pinned:
        return np.empty(size, dtype=np.uint8), None
    held = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return held.numpy(), held


class Parcel:
    """Base of dataclasses whose tensors, and those of parcels in them, are views of one buffer.

    Tensors of another origin travel too, in a copy of their own.
    """

    def to(self, device: torch.device | str) -> Self:
        """On a device. To a GPU from pinned memory, without waiting: torch reuses such memory only
        after the copies from it are done."""
        kind = torch.device(device).type
        if kind == "cpu" and all(tensor.device.type == "cpu" for tensor in self._tensors()):
            return self
        pins = kind == "cuda"

        def carry(buffer: Tensor) -> Tensor:
            if pins and buffer.device.type == "cpu":
                buffer = buffer.pin_memory()  # itself, if it is
            return buffer.to(device, non_blocking=True)

        return self._moved(_each_buffer_once(carry))

    def pin_memory(self) -> Self:
        """In pinned memory, from which a GPU can copy by itself; DataLoader asks for this name."""
        return self._moved(_each_buffer_once(Tensor.pin_memory))

    def _tensors(self) -> Iterator[Tensor]:
        for value in vars(self).values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, Parcel):
                yield from value._tensors()

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                changed[name] = move(value)
            elif isinstance(value, Parcel):
                changed[name] = value._moved(move)
        return replace(self, **changed)  # type: ignore[type-var]


def _each_buffer_once(carry: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Moves contiguous tensors by carrying what they are views of, (N,) uint8, only once."""
    carried: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        storage = storage_id(tensor)
        if storage not in carried:
            empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            carried[storage] = carry(empty.set_(tensor.untyped_storage()))
        place = int(tensor.storage_offset()) * tensor.element_size()
        return _view(carried[storage], place, tensor.dtype, tensor.shape)

    return move


def _view(buffer: Tensor, place: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    size = dtype.itemsize * math.prod(shape)
    return buffer[place : place + size].view(dtype).view(shape)
