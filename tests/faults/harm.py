"""Damage to the files of a checkpoint, as disks, people and crashes do it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from orpo_dist.runs.lineage import checkpoints


def truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))] if content else b"")


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(min(len(content), 3)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


HARMS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": truncate,
    "deleted": delete,
    "flipped": flip,
}


def damage_something(kind: str, folder: Path, draw: random.Random) -> str:
    """Harm one file of one checkpoint of a run, the newest most often; says which."""
    found = checkpoints(folder)
    if not found:
        return f"{kind}: nothing there yet"
    checkpoint = found[-1] if draw.random() < 0.7 else draw.choice(found)
    path = draw.choice(sorted(p for p in checkpoint.rglob("*") if p.is_file()))
    HARMS[kind](path, draw)
    return f"{kind}: {path.relative_to(folder)}"
