"""Rows out of JSON in its dialects: lines, arrays, objects one after another, tables of columns.

Rows come as ``(number, row)``. A line that is not even JSON arrives as ``Unreadable`` instead of a
row, so that it can be counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.data.packed import open_text

LINE_END = re.compile(r"\r\n|\r|\n")  # what a text file counts as one; not U+2028 inside a text
WRAPPERS = ("data", "rows", "examples", "instances", "items")
BLANK = re.compile(r"\s*")


class Unreadable:
    """Stands for a line that could not be parsed."""


def read_jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    """A row a line; objects over many lines and one array of rows are read as what they are."""
    with open_text(file) as handle:
        lines = ((n, line) for n, line in enumerate(handle, start=1) if line.strip())
        head = list(islice(lines, 2))
        first = _parse(head[0][1]) if head else None
        if isinstance(first, list) and len(head) == 1 and _are_rows(first):
            yield from enumerate(first, start=1)
        elif isinstance(first, Unreadable) and _spans_lines(file):
            yield from _read_documents(file)
        else:
            yield from ((n, row) for n, line in chain(head, lines) for row in _on_line(line))


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of thousands of digits
        return Unreadable()


def _on_line(line: str) -> list[Any]:
    """The row of a line, or several objects that stand on it without a line break."""
    row = _parse(line)
    if isinstance(row, Unreadable) and line.lstrip().startswith("{"):
        try:
            found = [value for _, value in _documents(line)]
        except (ValueError, RecursionError):
            return [row]
        if _are_rows(found):
            return found
    return [row]


def _are_rows(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _spans_lines(file: Path) -> bool:
    """Whether the file begins with a JSON object or array that goes over several lines."""
    with open_text(file) as handle:
        text = handle.read().lstrip()
    if text[0] not in "{[":
        return False
    try:
        end = json.JSONDecoder().raw_decode(text)[1]
    except (ValueError, RecursionError):
        return False
    return bool(LINE_END.search(text, 0, end))


def _read_documents(file: Path) -> Iterator[tuple[int, Any]]:
    """JSON objects one after another, numbered by the line each begins on, or one array of rows."""
    with open_text(file) as handle:
        text = handle.read()
    try:
        found = list(_documents(text))
    except json.JSONDecodeError as error:
        raise UserError(
            f"data file {file}:{error.lineno}: is not JSON ({error.msg}); rows over many lines "
            "cannot be read beyond a broken one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"data file {file}: cannot be read as JSON ({error})") from error
    one = found[0][1] if len(found) == 1 else None
    yield from enumerate(one, start=1) if isinstance(one, list) else found


def _documents(text: str) -> Iterator[tuple[int, Any]]:
    """``(line, value)`` of the JSON values that the text is; ``ValueError`` where it is none."""
    decoder, line, at = json.JSONDecoder(), 1, 0
    while True:
        begin = BLANK.match(text, at).end()  # type: ignore[union-attr]  # matches always
        line += len(LINE_END.findall(text, at, begin))
        if begin == len(text):
            return
        value, at = decoder.raw_decode(text, begin)
        yield line, value
        line += len(LINE_END.findall(text, begin, at))


def read_json(file: Path) -> Iterator[tuple[int, Any]]:
    """An array of rows, a table of columns, an object around the rows; also lines in disguise."""
    with open_text(file) as handle:
        text = handle.read()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from read_jsonl(file)
            return
        raise UserError(
            f"data file {file}:{error.lineno}: is not JSON ({error.msg}); expected an array of rows"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"data file {file}: cannot be read as JSON ({error})") from error
    rows = _table(content) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        what = "object" if isinstance(content, dict) else "value"
        raise UserError(f"data file {file}: holds one {what}; expected an array of rows")
    yield from enumerate(rows, start=1)


def _table(content: dict[str, Any]) -> list[Any] | None:
    """Rows of an object that stands for a table, in the ways that pandas and people write them."""
    for name in content if len(content) == 1 else WRAPPERS:  # {"version": 1, "data": [...]}
        if isinstance(content.get(name), list) and _are_rows(content[name]):
            return content[name]
    columns = [value for value in content.values() if isinstance(value, list)]
    if len(columns) < len(content):
        return _keyed_table(content, list(content.values()))
    if len({len(column) for column in columns}) != 1 or all(map(_are_rows, columns)):
        return None  # no table, or several of them
    return [dict(zip(content, row, strict=True)) for row in zip(*columns, strict=True)]


def _keyed_table(content: dict[str, Any], values: list[Any]) -> list[Any] | None:
    if not _are_rows(values):
        return None
    if all(key.isdecimal() for key in content):  # {"0": {"prompt": ...}, ...}
        return values
    keys = list(values[0])
    if all(key.isdecimal() for key in keys) and all(list(value) == keys for value in values):
        return [{name: content[name][key] for name in content} for key in keys]
    return None  # {"prompt": {"0": ...}, ...} it is not
