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

from orpo_dist.data.bounds import check_pairs
from orpo_dist.data.encode import Encoded, Encoder
from orpo_dist.data.pairs import PairDataset
from orpo_dist.data.report import DataReport
from orpo_dist.data.rows import REASONS, Columns, Example, Unusable, parse_row
from orpo_dist.data.sources import Source, Unreadable, open_source
from orpo_dist.types import UserError

logger = logging.getLogger("orpo_dist")

FORMAT = 2  # raise when tokenisation or the cache layout changes
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
        split, tokenizer.chat_template, encoder.wraps_strings, tokenizer.special_tokens_map,
        vocabulary,
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
    for number, source in enumerate(sources):
        report.start_source(paths[number] if paths else source.name)
        default = source.name if len(sources) > 1 else ""
        for example, pair in _pairs(source, encoder, columns, report, strict, progress):
            name = example.category or default
            categories[name] = categories.get(name, 0) + 1
            category_ids.append(numbers.setdefault(name, len(numbers)))
            source_ids.append(number)
            difficulty.append(example.difficulty)
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
        report.finish(table, categories),
    )


def _pairs(
    source: Source,
    encoder: Encoder,
    columns: Columns,
    report: DataReport,
    strict: bool,
    progress: bool,
) -> Iterator[tuple[Example, Encoded]]:
    """Usable pairs of one source with what they came from; everything else goes to the report."""

    def reject(origin: str, reason: str) -> None:
        if strict:
            raise UserError(f"{origin}: {REASONS[reason]} (strict_data is on)")
        report.skip(origin, reason)

    rows = tqdm(
        require_columns(source, columns),
        desc=f"tokenising {source.name}",
        unit=" rows",
        disable=None if progress else True,  # None: only where a person watches
        leave=False,
    )
    for batch in _batches(rows):
        report.sources[-1]["rows"] += len(batch)
        readable: list[tuple[str, Example]] = []
        for origin, row in batch:
            try:
                if isinstance(row, Unreadable):
                    raise Unusable("not_json")
                readable.append((origin, parse_row(row, columns)))
            except Unusable as unusable:
                reject(origin, unusable.reason)
        encoded = encoder.encode([example for _, example in readable])
        for (origin, example), result in zip(readable, encoded, strict=True):
            if isinstance(result, Unusable):
                reject(origin, result.reason)
            else:
                report.keep(result)
                yield example, result


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


def require_columns(source: Source, columns: Columns) -> Iterator[tuple[str, Any]]:
    """The rows of ``source``; ``UserError`` if none of the first ones has the answer columns."""
    rows = iter(source.rows)
    head = list(itertools.islice(rows, BATCH))
    seen = {key: None for _, row in head if isinstance(row, dict) for key in row}
    needed = [(columns.chosen, "text"), (columns.rejected, "rejected-text")]
    if columns.prompt != Columns.prompt:  # asked for by name, so it has to be there
        needed.append((columns.prompt, "prompt-text"))
    if columns.difficulty is not None:
        needed.append((columns.difficulty, "difficulty"))
    for wanted, flag in needed:
        if seen and wanted not in seen:
            raise UserError(
                f"{head[0][0].rpartition(':')[0]}: has no column '{wanted}'; its columns are "
                f"{', '.join(map(str, seen))} (set --{flag}-column)"
            )
    return itertools.chain(head, rows)


def _nothing_left(report: DataReport) -> str:
    reasons = "; ".join(
        f"{entry['count']} × {entry['meaning']}, first {entry['first'][0]}"
        for entry in report.skipped.values()
    )
    paths = ", ".join(source["path"] for source in report.sources)
    return f"{paths}: no usable pair ({reasons or 'no rows'})"
