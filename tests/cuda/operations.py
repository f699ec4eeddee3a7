"""What one micro-batch asks of a GPU: operations, copies between host and device, waits.

A dispatch mode sees every operation on fake and on real tensors. It cannot see what the kernels
cost, nor whether memory is pinned.
"""

from __future__ import annotations

import collections
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# Operations whose result the host has to read before it can go on.
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "is_nonzero",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Operations that start no kernel.
FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "device", "empty",
    "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty", "permute", "reshape",
    "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind",
    "unsqueeze", "view",
}  # fmt: skip


def reads_host(name: str, args: Any) -> bool:
    """Whether the host waits for values: to count elements, or to look at one."""
    if name in INDEXING:
        return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    if name == "repeat_interleave":
        return isinstance(args[-1], Tensor)  # how long the result is stands in the repeats
    return name in READS


def where() -> str:
    """The line of this project, of a model or an adapter that asked for an operation."""
    for frame in reversed(traceback.extract_stack()):
        for package in ("orpo_dist", "transformers", "peft"):
            inside = frame.filename.rpartition(f"/{package}/")[2]
            if inside != frame.filename:
                return f"{package}/{inside}:{frame.lineno}: {frame.line}"
    return "the backward pass"


class HostReads(TorchDispatchMode):
    """Counts, on any device, the operations for which a GPU would be waited for, by line."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if reads_host(name, args):
            self.found[f"{name} at {where()}"] += 1
        return func(*args, **(kwargs or {}))


class DeviceLog(TorchDispatchMode):
    """Counts operations on a GPU by phase, copies to and from it, and waits for it, by line."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.operations: collections.Counter[str] = collections.Counter()
        self.copies: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        given = list(_tensors((args, kwargs)))
        on_gpu = any(x.is_cuda for x in given)
        if on_gpu and reads_host(name, args):
            self.waits[f"{name} at {where()}"] += 1
            if name == "_local_scalar_dense":  # a fake tensor has no value to give
                return (given[0].dtype.is_floating_point and 1.0) or 1
        result = func(*args, **(kwargs or {}))
        made = list(_tensors(result))
        if on_gpu or any(x.is_cuda for x in made):
            self._copy(name, func, args, kwargs or {}, [*given, *made])
            if name not in FREE:
                self.operations[self.phase] += 1
        return result

    def _copy(self, name: str, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        if name not in ("_to_copy", "copy_") or len({x.device.type for x in tensors}) < 2:
            return
        to_gpu = tensors[0].is_cuda if name == "copy_" else tensors[-1].is_cuda
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
        self.copies[self.phase] += 1
        if blocking or not to_gpu:
            self.waits[f"{'blocking copy' if to_gpu else 'copy to the host'} at {where()}"] += 1


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (x for x in tree_iter(tree) if isinstance(x, Tensor))
