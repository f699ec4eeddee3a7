"""A source's rows in the columns that its form has: the one way from a file to ``parse_row``."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from orpo_dist.data.columns import (
    CONTEXT,
    Head,
    filled,
    quoted,
    require,
    require_prompt,
    score_columns,
)
from orpo_dist.data.json_files import Unreadable
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Columns, Example, parse_row
from orpo_dist.data.schemas import Form, are_transcripts, recognise
from orpo_dist.data.serialised import listed
from orpo_dist.data.sources import Source

HEAD = 256  # rows looked at to tell the form

logger = logging.getLogger("orpo_dist")


@dataclass(frozen=True)
class Record:
    """One row on its way in. raw: as it is written, or a pair of a ranked list; row: the same with
    the columns that the form has; refusal: why it cannot be used, where that is known already."""

    origin: str
    raw: Any
    row: Any
    refusal: Unusable | None = None
    notes: tuple[str, ...] = ()

    def example(self, columns: Columns) -> Example:
        """The readable pair; raises ``Unusable``."""
        if self.refusal is not None:
            raise self.refusal
        return parse_row(self.row, columns)


class Reading:
    """Reads a source once; ``columns`` says how to parse its records.

    sides: whether the rows must have both answers; prompts alone are enough to generate from.
    quiet: say nothing, for a second reading. Raises ``UserError`` where the first rows lack a
    column, or where the prompt has another name.
    """

    def __init__(self, source: Source, columns: Columns, sides: bool = True, quiet: bool = False):
        self._rows = iter(source.rows)
        self._first = list(itertools.islice(self._rows, HEAD))
        rows = [row for _, row in self._first if isinstance(row, dict)]
        names = [str(name) for name in dict.fromkeys(key for row in rows for key in row)]
        file = self._first[0][0].rpartition(":")[0] if self._first else ""
        head = Head(file or source.name, rows, names)
        if not sides and names and not head.first_of(columns.chosen, columns.rejected):
            head.names.extend([columns.chosen, columns.rejected])
        self.where = head.where
        self.form = _form(head, columns)
        self.columns = self.form.columns
        self._scores = score_columns(names, self.columns)
        self._used = {
            self.columns.prompt, self.columns.chosen, self.columns.rejected, self.columns.system,
            self.columns.tools, columns.category, columns.difficulty, *self.form.used,
        }  # fmt: skip
        self._unused: Counter[str] = Counter()
        self._seen = self._lists = self._made = self._ties = 0
        reads = self.form.reads
        said = f"{self.where}: read as {self.form.title} ({reads})"
        self._said = [(False, said)] if reads else []
        self._quiet = quiet
        if not quiet:
            tell(self._said)

    def __iter__(self) -> Iterator[Record]:
        for origin, row in itertools.chain(self._first, self._rows):
            if not isinstance(row, dict):
                refusal = Unusable("not_json") if isinstance(row, Unreadable) else None
                yield Record(origin, None, row, refusal)
                continue
            self._seen += 1
            self._unused.update(
                n for n in row if n in CONTEXT and n not in self._used and filled(row[n])
            )
            try:
                yield from self._records(origin, row)
            except Unusable as unusable:
                yield Record(origin, row, row, unusable)

    def _records(self, origin: str, row: dict[str, Any]) -> Iterator[Record]:
        if self.form.ranking is not None:
            self._lists += 1
            pairs, ties = self.form.ranking.pairs(row, self.columns)
            self._made, self._ties = self._made + len(pairs), self._ties + ties
            for pair in pairs:
                yield Record(origin, pair, self._with_tools(pair))
            return
        made = self._with_tools(self.form.convert(row) if self.form.convert else row)
        yield Record(origin, row, made, None, ("lower_score",) if self._is_lower(row) else ())

    def _with_tools(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its tools as a list, or without tools; raises ``Unusable``."""
        name = self.columns.tools
        if name is None or row.get(name) is None:
            return row
        tools = listed(row[name])
        tools = [tools] if isinstance(tools, dict) else tools
        if isinstance(tools, str) and tools.strip() in ("", "null", "None"):
            tools = []
        if not isinstance(tools, list):
            raise Unusable("wrong_type")
        tools = [listed(tool) for tool in tools]
        if not all(isinstance(tool, dict) for tool in tools):
            raise Unusable("wrong_type")
        return {**row, name: tools or None}

    def _is_lower(self, row: dict[str, Any]) -> bool:
        return any(_below(row.get(good), row.get(bad)) for good, bad in self._scores)

    def conclude(self) -> list[tuple[bool, str]]:
        """Says what can be said once all rows were read; returns all that was: (loud, sentence)."""
        remarks = []
        for name, count in self._unused.items():
            advice = CONTEXT[name].format(name=quoted(name))
            if name in ("input", "history") and self.columns.prompt == "instruction":
                advice = "--data-format alpaca joins it to the instruction"
            rows = f"{count} of {self._seen} rows"
            remarks.append((True, f"{self.where}: column '{name}' ({rows}) is not used; {advice}"))
        if self.form.ranking is not None:
            ties = f"; {self._ties} answers as good as the best were left out" if self._ties else ""
            lists = f"{self.where}: {self._lists} ranked lists became {self._made} pairs{ties}"
            remarks.append((False, lists))
        if not self._quiet:
            tell(remarks)
        return [*self._said, *remarks]


def tell(said: Iterable[tuple[bool, str]]) -> None:
    """Log what a reading has to say, the loud sentences as warnings."""
    for loud, sentence in said:
        logger.log(logging.WARNING if loud else logging.INFO, "%s", sentence)


def _form(head: Head, columns: Columns) -> Form:
    """The form of the data, once the columns are there that it reads."""
    default = Columns()
    if columns.prompt != default.prompt:  # asked for by name, so it has to be there
        require(head, columns.prompt, "prompt-text")
    require(head, columns.system, "system")
    if columns.tools != default.tools:
        require(head, columns.tools, "tools")
    form = recognise(head, columns)
    read = form.columns
    if not form.makes_sides:
        require(head, read.chosen, "text")
        require(head, read.rejected, "rejected-text")
    require(head, columns.difficulty, "difficulty")
    made = form.convert or form.ranking
    given = made or any(row.get(read.prompt) is not None for row in head.rows)
    if not (given or read.implicit_prompt or are_transcripts(head, read)):
        require_prompt(head, read)
    return form


def _below(chosen: Any, rejected: Any) -> bool:
    try:
        return float(chosen) < float(rejected)
    except (TypeError, ValueError):
        return False
