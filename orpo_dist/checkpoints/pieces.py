"""Pieces of flattened tensors in safetensors files, written by some processes, read by any others.

Every engine cuts a parameter, and what its optimizer keeps for it, into ranges of the flattened
tensor: the whole of it (one process, DDP), any range (ZeRO-1, -2, -3), a range of rows (FSDP2). So
a rank writes the ranges that it holds, without asking the others; and whoever reads takes the
ranges that it needs, whatever files they are in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from orpo_dist.base.types import UserError

FILE_BYTES = 2**30  # what a process copies to the CPU at once, and about the size of a file


@dataclass(frozen=True)
class Piece:
    """A range of a flattened tensor.

    name: the parameter's, as the model calls it. kind: ``weight``, or what the optimizer calls it
    (``exp_avg``). start: the first number of the range. numbers: (n,), possibly in other memory.
    """

    name: str
    kind: str
    start: int
    numbers: Tensor

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.start}:{self.name}"


@dataclass(frozen=True)
class Unwritten:
    """A file to be: copies on the CPU, which training does not change any more."""

    path: Path
    copies: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(copy.nbytes for copy in self.copies.values())

    def write(self) -> Path:
        """Write the file, and let go of the copies."""
        save_file(self.copies, self.path)
        self.copies.clear()
        return self.path


def unwritten(folder: Path, rank: int, pieces: Iterable[Piece]) -> Iterator[Unwritten]:
    """What one rank holds, in files of about ``FILE_BYTES``; one is copied when it is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(_parts(pieces)):
        # A copy, as pieces are views into one memory, which safetensors refuses.
        copies = {p.key: p.numbers.detach().to("cpu", copy=True).contiguous() for p in part}
        yield Unwritten(folder / f"rank-{rank:05d}-part-{number:03d}.safetensors", copies)


def _parts(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    part: list[Piece] = []
    size = 0
    for piece in pieces:
        part.append(piece)
        size += piece.numbers.nbytes
        if size >= FILE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


class Pieces:
    """All pieces in a folder, whoever wrote them; a context, within which they can be read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._where: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        self._files = ExitStack()

    def __enter__(self) -> Pieces:
        for path in sorted(self.folder.glob("rank-*.safetensors")):
            try:
                file = self._files.enter_context(safe_open(path, "pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"checkpoint file {path}: cannot be read ({error})") from error
            for key in file.keys():  # noqa: SIM118 (not a dict)
                kind, start, name = key.split(":", 2)
                (count,) = file.get_slice(key).get_shape()
                self._where.setdefault((name, kind), []).append((int(start), count, file, key))
        for found in self._where.values():
            found.sort(key=lambda piece: piece[0])
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def kinds(self, name: str) -> list[str]:
        """What is there of a parameter, its weights apart."""
        return sorted(kind for of, kind in self._where if of == name and kind != "weight")

    def names(self) -> set[str]:
        """The parameters that anything is there of."""
        return {name for name, _ in self._where}

    def size(self, name: str) -> int:
        """How many weights a parameter had."""
        return sum(count for _, count, _, _ in self._where.get((name, "weight"), []))

    def read_into(self, target: Tensor, name: str, kind: str, start: int) -> None:
        """Fill a flat tensor with the numbers from ``start`` on; ``UserError`` if any is missing.

        target: (n,) of any device and precision.
        """
        at, end = start, start + target.numel()
        for first, count, file, key in self._where.get((name, kind), []):
            until = min(first + count, end)
            if first <= at < until:
                piece = file.get_slice(key)[at - first : until - first]
                with torch.no_grad():
                    target[at - start : until - start].copy_(piece)
                at = until
        if at < end:
            raise UserError(
                f"checkpoint {self.folder.parent}: lacks {kind} of {name} from number {at} on"
            )
