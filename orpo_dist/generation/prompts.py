"""Prompts from flags and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.data.files import is_data_file
from orpo_dist.data.reading import Reading
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Columns, parse_prompt
from orpo_dist.data.sources import open_source

Prompt = str | list[dict[str, str]]

COLUMN = "prompt"  # the default of --prompt-text-column


def read_prompts(
    texts: Sequence[str],
    file: str | None,
    column: str = COLUMN,
    system: str | None = None,
    flag: str = "prompts-file",
) -> list[Prompt]:
    """The prompts given as texts, then those of a file, each once. system: a message before each.

    file: text with a prompt a line, or rows (JSON, JSONL, CSV, Parquet) with a column of prompts as
    text or messages; preference data will do. flag: which named the file. Raises ``UserError``.
    """
    prompts: list[Prompt] = list(texts)
    if file is not None:
        prompts += _from_file(file, column, flag)
    if not prompts:
        raise UserError("nothing to answer: pass --prompt TEXT or --prompts-file FILE")
    if system is not None:
        prompts = [with_system(prompt, system) for prompt in prompts]
    return list({json.dumps(prompt): prompt for prompt in prompts}.values())


def with_system(prompt: Prompt, system: str) -> Prompt:
    """The prompt as messages that begin with ``system``, which replaces one that is there."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages[0]["role"] == "system":
        messages = messages[1:]
    return [{"role": "system", "content": system}, *messages]


def _from_file(file: str, column: str, flag: str) -> list[Prompt]:
    path = Path(file).expanduser()
    if is_data_file(path.name):
        return _from_rows(path, column, flag)
    try:
        found: list[Prompt] = [line for line in text_lines(path) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {file}: cannot be read ({error})") from error
    if not found:
        raise UserError(f"{flag} {file}: holds no prompts")
    return found


def text_lines(path: Path) -> list[str]:
    """The lines of a text file; unlike ``splitlines`` not cut at U+2028 and its like, which models
    write inside of a text."""
    return path.read_text(encoding="utf-8-sig").split("\n")


def _from_rows(path: Path, column: str, flag: str) -> list[Prompt]:
    if not path.is_file():
        raise UserError(f"{flag} {path}: cannot be read (no such file)")
    reading = Reading(open_source(str(path), "train"), Columns(prompt=column), sides=False)
    found: list[Prompt] = []
    for record in reading:
        try:
            found.append(_prompt_of(record, reading.columns))
        except Unusable as unusable:
            missing = unusable.reason == "missing_column"
            why = f"has no column '{column}'" if missing else unusable.sentence
            raise UserError(f"{flag} {record.origin}: {why}") from unusable
    return found


def _prompt_of(record: Any, columns: Any) -> Prompt:
    """The prompt of a row, with its system message; raises ``Unusable``."""
    row = record.row
    if not isinstance(row, dict) or row.get(columns.prompt) is None:
        return record.example(columns).prompt  # preferences whose sides hold the prompt
    if record.refusal is not None:
        raise record.refusal
    prompt = parse_prompt(row[columns.prompt])
    system = row.get(columns.system) if columns.system else None
    return with_system(prompt, system) if isinstance(system, str) and system.strip() else prompt


def prompt_lines(prompt: Prompt) -> str:
    """A prompt for people to read; a lone user message is the same as its plain string."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
