"""Data paths -> ``PairDataset``: read, check, tokenise, truncate, report; cached by content."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from orpo_dist.base.types import UserError
from orpo_dist.data.bounds import check_pairs
from orpo_dist.data.encode import Encoded, Encoder
from orpo_dist.data.pairs import PairDataset
from orpo_dist.data.reading import Reading, Record, tell
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.report import DataReport
from orpo_dist.data.rows import Columns, Example
from orpo_dist.data.sources import Source, open_source

logger = logging.getLogger("orpo_dist")

FORMAT = 5  # raise when tokenisation or the cache layout changes
BATCH = 256  # rows tokenised at a time


def prepare(
    paths: Sequence[str],
    encoder: Encoder,
    columns: Columns,
    split: str,
    strict: bool = False,
    progress: bool = True,
) -> PairDataset:
    """All usable pairs of the given files, folders and hub ids.

    strict: raise ``UserError`` on the first unusable row instead of skipping it.
    Raises ``UserError`` where a source cannot be read, lacks a column or yields no pair, and where
    the model does not know a token.
    """
    sources = [open_source(path, split) for path in paths]
    folder = cache_root() / "pairs" / _key(sources, encoder, columns, split)
    cached = _cached(folder)
    if cached is not None and not (strict and cached.report["skipped"]):
        dataset = cached
        tell(dataset.report["said"])
    else:
        dataset = build(sources, encoder, columns, strict, progress, list(paths))
        _store(dataset, folder)
    check_pairs(dataset, encoder, ", ".join(paths))
    return dataset


def _cached(folder: Path) -> PairDataset | None:
    try:
        return PairDataset.load(folder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        logger.warning("cached data in %s are damaged (%s); made again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def cache_root() -> Path:
    """``$ORPO_DIST_CACHE`` or ``~/.cache/orpo_dist``."""
    return Path(os.environ.get("ORPO_DIST_CACHE") or Path.home() / ".cache" / "orpo_dist")


def _key(sources: list[Source], encoder: Encoder, columns: Columns, split: str) -> str:
    tokenizer = encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [
        FORMAT, [source.fingerprint for source in sources], vars(columns), _cuts(encoder),
        split, tokenizer.chat_template, encoder.template.source, encoder.template.options,
        encoder.wraps_strings, tokenizer.special_tokens_map, vocabulary,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def _cuts(encoder: Encoder) -> dict[str, Any]:
    """The limits that pairs are cut by."""
    return {k: v for k, v in vars(encoder.limits).items() if k not in ("context", "rows")}


def _store(dataset: PairDataset, folder: Path) -> None:
    """Save next to the final place and rename, so that a cache entry is whole or absent."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        try:
            dataset.save(scratch / "pairs")
            (scratch / "pairs").rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:  # a full or read-only disk, or another process was first
        logger.info("tokenised data not cached: %s", error)


def build(
    sources: list[Source],
    encoder: Encoder,
    columns: Columns,
    strict: bool = False,
    progress: bool = True,
    paths: list[str] | None = None,
) -> PairDataset:
    """Read and tokenise without a cache; see ``prepare``."""
    report = DataReport(encoder.limits)
    tokens: list[np.ndarray] = []
    lengths: list[tuple[int, int, int]] = []
    category_ids: list[int] = []
    source_ids: list[int] = []
    difficulty: list[float] = []
    categories: dict[str, int] = {}
    numbers: dict[str, int] = {}
    files: dict[str, int] = {}
    rows: list[tuple[int, int]] = []
    for number, source in enumerate(sources):
        report.start_source(paths[number] if paths else source.name)
        default = source.name if len(sources) > 1 else ""
        for origin, example, pair in _pairs(source, encoder, columns, report, strict, progress):
            name = example.category or default
            categories[name] = categories.get(name, 0) + 1
            category_ids.append(numbers.setdefault(name, len(numbers)))
            source_ids.append(number)
            difficulty.append(example.difficulty)
            file, row = _file_and_row(origin)
            rows.append((files.setdefault(file, len(files)), row))
            lengths.append((len(pair.prompt), len(pair.chosen), len(pair.rejected)))
            tokens.append(np.asarray(pair.prompt + pair.chosen + pair.rejected, dtype=np.int32))
    if not tokens:
        raise UserError(_nothing_left(report))
    table = np.asarray(lengths, dtype=np.int32)
    return PairDataset(
        np.concatenate(tokens),
        table,
        np.asarray(category_ids, dtype=np.int32),
        np.asarray(source_ids, dtype=np.int32),
        np.asarray(difficulty) if columns.difficulty else None,
        {**report.finish(table, categories), "files": list(files)},
        np.asarray(rows, dtype=np.int32),
    )


def _file_and_row(origin: str) -> tuple[str, int]:
    """``pairs.jsonl:12`` as what stands before the number, and the number."""
    file = origin.rstrip("0123456789")
    return file, int(origin[len(file) :])


def _pairs(
    source: Source,
    encoder: Encoder,
    columns: Columns,
    report: DataReport,
    strict: bool,
    progress: bool,
) -> Iterator[tuple[str, Example, Encoded]]:
    """Usable pairs of one source with where they came from; all else goes to the report."""

    def reject(origin: str, why: Unusable) -> None:
        if strict:
            raise UserError(f"{origin}: {why.sentence} (strict_data is on)")
        report.skip(origin, why)

    reading = Reading(source, columns)
    rows = tqdm(
        reading,
        desc=f"tokenising {source.name}",
        unit=" rows",
        disable=None if progress else True,  # None: only where a person watches
        leave=False,
    )
    for batch in _batches(rows):
        report.sources[-1]["rows"] += len(batch)
        readable: list[tuple[Record, Example]] = []
        for record in batch:
            try:
                readable.append((record, record.example(reading.columns)))
            except Unusable as unusable:
                reject(record.origin, unusable)
        encoded = encoder.encode([example for _, example in readable])
        for (record, example), result in zip(readable, encoded, strict=True):
            if isinstance(result, Unusable):
                reject(record.origin, result)
                continue
            for note in record.notes:
                report.note(record.origin, note)
            report.keep(record.origin, result)
            yield record.origin, example, result
    report.said += reading.conclude()


def _batches(rows: Iterable[Record]) -> Iterator[list[Record]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


def _nothing_left(report: DataReport) -> str:
    reasons = "; ".join(
        f"{entry['count']} × {entry['meaning']}, first {entry['first'][0]}"
        for entry in report.skipped.values()
    )
    paths = ", ".join(source["path"] for source in report.sources)
    return f"{paths}: no usable pair ({reasons or 'no rows'})"
