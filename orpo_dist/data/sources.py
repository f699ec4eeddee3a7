"""Where rows come from: files, folders, ``datasets`` folders and hub ids, all as one stream.

A stream yields ``(origin, row)``; the origin is ``file:row`` for people to find the row again. A
line that is not even JSON arrives as ``Unreadable`` instead of a row, so that it can be counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_dist.base.outage import is_outage
from orpo_dist.base.types import TemporaryFailure, UserError
from orpo_dist.data.files import is_data_file, read_file
from orpo_dist.data.folders import folder_files
from orpo_dist.upstream.datasets import fingerprint_of


@dataclass(frozen=True)
class Source:
    """One entry of ``data_path``: its rows, and what identifies its content for caching."""

    name: str
    rows: Iterable[tuple[str, Any]]
    fingerprint: list[str]


def open_source(path: str, split: str) -> Source:
    """Find out what ``path`` is and open it; ``UserError`` if it is nothing that can be read.

    split: which part to take where the source has parts (hub id, datasets folder, a folder with
    files named after splits); plain files have none and are read whole.
    """
    where = Path(path).expanduser()
    if where.is_dir():
        if (where / "dataset_info.json").exists() or (where / "dataset_dict.json").exists():
            return _datasets_source(path, split, local=True)
        return _files_source(where.name or where.resolve().name, folder_files(where, split))
    if where.is_file():
        return _files_source(where.name.split(".")[0], [where])
    # a hub id may hold a version, as in org/name-v1.1
    looks_like_a_file = is_data_file(where.name) or where.suffix[1:].isalpha()
    if looks_like_a_file or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"data file {path}: does not exist")
    return _datasets_source(path, split, local=False)


def _files_source(name: str, files: list[Path]) -> Source:
    stats = [(file.resolve(), file.stat()) for file in files]
    marks = [f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats]
    return Source(name, (row for file in files for row in read_file(file)), marks)


def _datasets_source(path: str, split: str, local: bool) -> Source:
    """A folder written by ``datasets`` or a hub id, through the ``datasets`` library."""
    import datasets

    try:
        found = datasets.load_from_disk(path) if local else datasets.load_dataset(path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if is_outage(error):
            raise TemporaryFailure(f"data {path}: cannot be loaded now ({reason})") from error
        kind = "datasets folder" if local else "neither a file here nor a hub data set that loads"
        raise UserError(f"data {path}: {kind} ({reason})") from error
    if isinstance(found, dict):
        if split not in found:
            raise UserError(
                f"data {path}: has no split '{split}'; it has {', '.join(found)} (set "
                "--train-split or --valid-split)"
            )
        found = found[split]
    rows = ((f"{path}[{split}]:{number}", row) for number, row in enumerate(found, start=1))
    return Source(path.rstrip("/").rpartition("/")[2], rows, [path, split, fingerprint_of(found)])
