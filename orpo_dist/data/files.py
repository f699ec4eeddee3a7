"""Rows out of one file: JSON, CSV and TSV, Parquet and Arrow, as ``(file:row, row)``."""

from __future__ import annotations

import csv
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.data.json_files import read_json, read_jsonl
from orpo_dist.data.packed import PACKINGS, kind_of, open_text, packing_of

Numbered = Iterator[tuple[int, Any]]

KINDS = ".jsonl, .json, .csv, .tsv, .parquet, .arrow"
NOT_FETCHED = b"version https://git-lfs"  # what Git LFS puts in a file's place
BATCH = 1024


def is_data_file(name: str) -> bool:
    """Whether ``read_file`` knows what to do with a file of this name."""
    kind = kind_of(name)
    return kind in READERS and not (kind in ARROW and packing_of(name))


def read_file(file: Path) -> Iterator[tuple[str, Any]]:
    """Rows of one file by its suffix; ``UserError`` if it is empty or of an unknown kind."""
    if not is_data_file(file.name):
        raise UserError(
            f"data file {file}: unknown kind; use {KINDS} (as text also {', '.join(PACKINGS)})"
        )
    if file.stat().st_size == 0:
        raise UserError(f"data file {file}: is empty")
    rows = 0
    try:
        with file.open("rb") as handle:
            if handle.read(len(NOT_FETCHED)) == NOT_FETCHED:
                raise UserError(f"data file {file}: is not fetched yet; run 'git lfs pull' there")
        for number, row in READERS[kind_of(file.name)](file):
            rows += 1
            yield f"{file}:{number}", row
    except UnicodeDecodeError as error:
        raise UserError(
            f"data file {file}: is not UTF-8 text; convert it, e.g. with iconv -t utf-8"
        ) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"data file {file}: cannot be read ({error})") from error
    if rows == 0:
        raise UserError(f"data file {file}: holds no rows")


def _read_csv(file: Path) -> Numbered:
    return _read_table(file, ",")


def _read_tsv(file: Path) -> Numbered:
    return _read_table(file, "\t")


def _read_table(file: Path, delimiter: str) -> Numbered:
    """A row a record. Where a comma gives one column it is the semicolon that some Excels write."""
    csv.field_size_limit(sys.maxsize)
    with open_text(file) as handle:
        head = handle.readline()
    if len(next(csv.reader([head], delimiter=delimiter), [])) == 1:
        delimiter = next((sign for sign in ";\t," if sign in head), delimiter)
    with open_text(file) as handle:
        reader = csv.DictReader(handle, delimiter=delimiter)
        try:
            for name, times in Counter(reader.fieldnames or []).items():
                if times > 1 and name:
                    raise UserError(f"data file {file}: has {times} columns named '{name}'")
            for row in reader:
                yield reader.line_num, {k: v for k, v in row.items() if k is not None}
        except csv.Error as error:
            raise UserError(f"data file {file}:{reader.line_num}: is not CSV ({error})") from error


def _read_parquet(file: Path) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=BATCH)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data file {file}: is not Parquet ({error})") from error


def _read_arrow(file: Path) -> Numbered:
    """Arrow's file format (Feather), or its stream format, which ``datasets`` writes."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as source:
            yield from enumerate(_arrow_rows(pyarrow, source), start=1)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data file {file}: is not Arrow ({error})") from error


def _arrow_rows(pyarrow: Any, source: Any) -> Iterator[dict[str, Any]]:
    batches: Any
    try:
        file = pyarrow.ipc.open_file(source)
        batches = map(file.get_batch, range(file.num_record_batches))
    except pyarrow.ArrowInvalid:
        source.seek(0)
        batches = pyarrow.ipc.open_stream(source)
    for batch in batches:
        for begin in range(0, len(batch), BATCH):
            yield from batch.slice(begin, BATCH).to_pylist()


READERS: dict[str, Callable[[Path], Numbered]] = {
    "jsonl": read_jsonl, "ndjson": read_jsonl, "jsonlines": read_jsonl, "json": read_json,
    "csv": _read_csv, "tsv": _read_tsv,
    "parquet": _read_parquet, "arrow": _read_arrow, "feather": _read_arrow,
}  # fmt: skip
ARROW = ("parquet", "arrow", "feather")  # these pack what is inside, not the whole file
