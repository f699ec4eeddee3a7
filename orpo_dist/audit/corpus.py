"""Every row of the audited files: either an example, or the loader's reason against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from orpo_dist.data import Columns
from orpo_dist.data.reading import Reading
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Example
from orpo_dist.data.sources import open_source


@dataclass(frozen=True)
class Corpus:
    """R rows, of which N are readable pairs.

    origins: ``file:row`` of all R rows. unusable: row number -> reason (a key of ``REASONS``).
    examples: the N pairs; rows: (N,) their row numbers. categories: of the N pairs, the source's
    name where a row has none and there are several sources. notes: pair -> keys of ``NOTES``.
    """

    origins: list[str]
    unusable: dict[int, str]
    examples: list[Example]
    rows: np.ndarray
    categories: list[str]
    notes: dict[int, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.examples)

    def origin(self, pair: int) -> str:
        return self.origins[self.rows[pair]]


def read_corpus(paths: Sequence[str], columns: Columns, split: str) -> Corpus:
    """Read all rows; ``UserError`` where a source cannot be read or lacks the answer columns."""
    origins: list[str] = []
    unusable: dict[int, str] = {}
    examples: list[Example] = []
    rows: list[int] = []
    categories: list[str] = []
    notes: dict[int, tuple[str, ...]] = {}
    sources = [open_source(path, split) for path in paths]
    for source in sources:
        default = source.name if len(sources) > 1 else ""
        reading = Reading(source, columns)
        stream = tqdm(
            reading, desc=f"reading {source.name}", unit=" rows", disable=None, leave=False
        )
        for record in stream:
            try:
                example = record.example(reading.columns)
            except Unusable as reason:
                unusable[len(origins)] = reason.reason
            else:
                if record.notes:
                    notes[len(examples)] = record.notes
                rows.append(len(origins))
                examples.append(example)
                categories.append(example.category or default)
            origins.append(record.origin)
        reading.conclude()
    return Corpus(origins, unusable, examples, np.asarray(rows, dtype=np.int64), categories, notes)


def prompt_text(example: Example) -> str:
    """A prompt as one text; a lone user message is the same as its plain string."""
    prompt = example.prompt
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
