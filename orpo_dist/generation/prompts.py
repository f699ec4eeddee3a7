"""Prompts from flags and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError

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
    from orpo_dist.data.files import is_data_file

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
    from orpo_dist.data.reading import Reading
    from orpo_dist.data.reasons import Unusable
    from orpo_dist.data.rows import Columns
    from orpo_dist.data.sources import open_source

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
    from orpo_dist.data.rows import parse_prompt

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


def sampling_flags(parser: Any) -> None:
    """How answers are drawn; the names and meanings of transformers."""
    parser.add_argument("--max-new-tokens", type=int, default=128, help="(default: 128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="(default: 1, no cut)")
    parser.add_argument("--top-k", type=int, default=0, help="(default: 0, no cut)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="(default: 1, none)")
    parser.add_argument("--num-beams", type=int, default=1, help="(default: 1, no beam search)")
    parser.add_argument("--seed", type=int, default=42, help="of sampling (default: 42)")


def sampling_options(options: Any) -> dict[str, Any]:
    """Keywords for ``generate`` of transformers; ``UserError`` for a number out of range."""
    for name, good in (
        ("max_new_tokens", options.max_new_tokens >= 1),
        ("temperature", options.temperature >= 0),
        ("top_p", 0 < options.top_p <= 1),
        ("top_k", options.top_k >= 0),
        ("repetition_penalty", options.repetition_penalty > 0),
        ("num_beams", options.num_beams >= 1),
        ("seed", 0 <= options.seed < 2**32),
    ):
        if not good:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {getattr(options, name)}: is out of range")
    # Defaults too: what is left out, the model's generation_config.json decides.
    found: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "repetition_penalty": options.repetition_penalty,
        "num_beams": options.num_beams,
    }
    if options.temperature > 0:
        found |= {
            "do_sample": True,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
        }
    elif options.top_p != 1 or options.top_k != 0:
        raise UserError("--top-p and --top-k: need a --temperature above 0; else nothing is drawn")
    return found
