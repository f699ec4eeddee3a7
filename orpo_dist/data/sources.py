"""Where rows come from: files, folders, ``datasets`` folders and hub ids, all as one stream.

A stream yields ``(origin, row)``; the origin is ``file:row`` for people to find the row again. A
line that is not even JSON arrives as ``Unreadable`` instead of a row, so that it can be counted.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_dist.outage import is_outage
from orpo_dist.types import TemporaryFailure, UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")


OTHER_SPLITS = ("test", "valid", "val", "eval", "dev")

logger = logging.getLogger("orpo_dist")


class Unreadable:
    """Stands for a line that could not be parsed."""


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
        return _files_source(where.name, _folder_files(where, split))
    if where.is_file():
        return _files_source(where.name.split(".")[0], [where])
    # a hub id may hold a version, as in org/name-v1.1
    if where.suffix[1:].isalpha() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"data file {path}: does not exist")
    return _datasets_source(path, split, local=False)


def _folder_files(folder: Path, split: str) -> list[Path]:
    """The data files of a folder: those named after the split; all for train if none is."""
    files = sorted(file for file in folder.iterdir() if file.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"data folder {folder}: holds no {', '.join(SUFFIXES[:4])} file")
    named = [file for file in files if file.name.startswith(split)]
    if not named and split != "train":
        raise UserError(f"data folder {folder}: has no file named after the split '{split}'")
    taken = named or [file for file in files if not file.name.startswith(OTHER_SPLITS)]
    if len(taken) < len(files):
        left_out = ", ".join(file.name for file in files if file not in taken)
        logger.info("data folder %s: %s not part of split '%s'", folder, left_out, split)
    return taken


def _files_source(name: str, files: list[Path]) -> Source:
    stats = [(file.resolve(), file.stat()) for file in files]
    marks = [f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats]
    return Source(name, (row for file in files for row in read_file(file)), marks)


def read_file(file: Path) -> Iterator[tuple[str, Any]]:
    """Rows of one file by its suffix; ``UserError`` if it is empty or of an unknown kind."""
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    readers = {"jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv, "parquet": _read_parquet}
    if kind not in readers:
        raise UserError(f"data file {file}: unknown kind; use {', '.join(SUFFIXES[:4])}")
    if file.stat().st_size == 0:
        raise UserError(f"data file {file}: is empty")
    rows = 0
    try:
        for number, row in readers[kind](file):
            rows += 1
            yield f"{file}:{number}", row
    except UnicodeDecodeError as error:
        raise UserError(
            f"data file {file}: is not UTF-8 text; convert it, e.g. with iconv -t utf-8"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data file {file}: cannot be read ({error})") from error
    if rows == 0:
        raise UserError(f"data file {file}: holds no rows")


def _open_text(file: Path) -> Any:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of thousands of digits
        return Unreadable()


def _read_jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    with _open_text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _parse_json(line)


def _read_json(file: Path) -> Iterator[tuple[int, Any]]:
    """A JSON array; a ``.json`` file that is really JSON lines is read as such."""
    with _open_text(file) as handle:
        text = handle.read()
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _read_jsonl(file)
            return
        raise UserError(
            f"data file {file}:{error.lineno}: is not JSON ({error.msg}); expected an array of rows"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"data file {file}: cannot be read as JSON ({error})") from error
    if not isinstance(rows, list):
        what = "object" if isinstance(rows, dict) else "value"
        raise UserError(f"data file {file}: holds one {what}; expected an array of rows")
    yield from enumerate(rows, start=1)


def _read_csv(file: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(sys.maxsize)
    with _open_text(file) as handle:
        reader = csv.DictReader(handle)
        try:
            for row in reader:
                yield reader.line_num, {k: _csv_cell(v) for k, v in row.items() if k is not None}
        except csv.Error as error:
            raise UserError(f"data file {file}:{reader.line_num}: is not CSV ({error})") from error


def _csv_cell(cell: str | None) -> Any:
    """A cell may hold a message list as JSON; anything else is its text."""
    if cell and cell.lstrip().startswith("[{"):
        parsed = _parse_json(cell)
        return cell if isinstance(parsed, Unreadable) else parsed
    return cell


def _read_parquet(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data file {file}: is not Parquet ({error})") from error


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
    return Source(path.rstrip("/").rpartition("/")[2], rows, [path, split, found._fingerprint])
