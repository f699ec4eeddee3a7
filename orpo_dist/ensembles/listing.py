"""``ensemble.json``: which models an ensemble is made of. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError

FILE = "ensemble.json"


@dataclass(frozen=True)
class Listed:
    """A member by its path or hub id, and its weight."""

    path: str
    weight: float = 1.0


def find_members(paths: Sequence[str], weights: Sequence[float] | None = None) -> list[Listed]:
    """The members that the paths name: each a model, or one folder with an ``ensemble.json``.

    weights: one per member, over those of the file. Raises ``UserError``.
    """
    if not paths:
        raise UserError("an ensemble needs at least one member")
    listed = [Listed(path) for path in paths]
    if len(paths) == 1 and (Path(paths[0]) / FILE).is_file():
        listed = read_listing(Path(paths[0]))
    if weights is not None:
        if len(weights) != len(listed):
            raise UserError(f"weights: {len(weights)} numbers for {len(listed)} members")
        listed = [Listed(one.path, weight) for one, weight in zip(listed, weights, strict=True)]
    for number, member in enumerate(listed):
        if not 0 < member.weight < float("inf"):
            raise UserError(
                f"weights: {member.weight:g} of {member.path} must be above 0 and finite"
            )
        if _place(member.path) in [_place(other.path) for other in listed[:number]]:
            raise UserError(f"member {member.path}: is given twice")
    return listed


def _place(path: str) -> str:
    """A folder by its one true name; a hub id as it is."""
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.is_dir() else path


def read_listing(folder: Path) -> list[Listed]:
    """The members of an ensemble folder."""
    file = folder / FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = [(entry["path"], entry.get("weight", 1.0)) for entry in content["members"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is not a list of members ({error})") from error
    if not entries:
        raise UserError(f"{file}: names no members")
    for path, weight in entries:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (isinstance(path, str) and number):
            raise UserError(f"{file}: every member needs a path and may have a weight")
    return [Listed(_from_folder(folder, path), float(weight)) for path, weight in entries]


def write_listing(folder: Path, members: Sequence[Listed], **notes: Any) -> Path:
    """Write ``ensemble.json``; members inside the folder by relative paths, so that it can move."""
    entries = [{"path": _to_folder(folder, m.path), "weight": m.weight} for m in members]
    file = folder / FILE
    text = json.dumps({"members": entries, **notes}, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error
    return file


def _from_folder(folder: Path, path: str) -> str:
    """``./x`` is in the folder; anything else is a path or a hub id of its own."""
    return os.path.normpath(folder / path) if path.startswith("./") else path


def _to_folder(folder: Path, path: str) -> str:
    if not Path(path).is_dir():
        return path
    here, there = folder.resolve(), Path(path).resolve()
    return f"./{there.relative_to(here)}" if there.is_relative_to(here) else str(there)
