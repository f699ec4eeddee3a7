"""``orpo-dist generate``: its flags, and what it does with them."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from orpo_dist.base.pages import output_path, write_output
from orpo_dist.base.types import UserError
from orpo_dist.evaluation.command import add_full_precision_flag
from orpo_dist.generation.prompts import (
    Prompt,
    prompt_lines,
    read_prompts,
    sampling_flags,
    sampling_options,
)

if TYPE_CHECKING:
    from orpo_dist.generation.speakers import Speaker


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run folder, a model folder or a hub id")
    add_prompt_flags(parser)
    parser.add_argument("--chat", action="store_true", help="talk, line by line")
    parser.add_argument(
        "--beside", nargs="?", const="base", metavar="MODEL",
        help="answer with this model too; without a name: with the base of the fine-tune",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, help="prompts at once (default: 8)")
    parser.add_argument("--json", metavar="FILE", help="write prompts and answers, one row a line")
    add_full_precision_flag(parser)
    sampling_flags(parser)


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument(
        "--prompts-file", metavar="FILE",
        help="text with a prompt a line, or JSON, JSONL, CSV, Parquet with a column of prompts",
    )  # fmt: skip
    parser.add_argument(
        "--prompt-text-column", default="prompt", metavar="NAME", help="(default: prompt)"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message before every prompt")


def prompts_of(options: argparse.Namespace) -> list[Prompt]:
    """The prompts that the flags name."""
    return read_prompts(
        options.prompt, options.prompts_file, options.prompt_text_column, options.system
    )


def run_generate(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    sampling = sampling_options(options)
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: is out of range")
    if options.chat and (options.prompt or options.prompts_file or options.json):
        raise UserError("--chat takes its prompts from the keyboard and writes no file")
    prompts = [] if options.chat else prompts_of(options)
    output = output_path("json", options.json) if options.json else None
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.generation.speakers import speakers

    quieten_libraries()
    who = speakers(options.model, options.beside, options.full_precision)
    from transformers import set_seed

    set_seed(options.seed)
    if options.chat:
        from orpo_dist.generation.chat import chat

        chat(who, sampling, options.system)
        return 0
    rows = _answer(who, prompts, options.batch_size, options.seed, sampling)
    _show(rows)
    if output is not None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_output("json", output, "".join(lines))
    return 0


def _answer(
    who: list[Speaker], prompts: list[Prompt], batch_size: int, seed: int, sampling: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of ``prompt`` and ``answers`` by speaker; every speaker draws from the same seed."""
    from transformers import set_seed

    from orpo_dist.generation.speakers import answers

    rows: list[dict[str, Any]] = [{"prompt": prompt, "answers": {}} for prompt in prompts]
    for speaker in who:
        set_seed(seed)
        for row, text in zip(rows, answers(speaker, prompts, batch_size, **sampling), strict=True):
            row["answers"][speaker.name] = text
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        several = len(row["answers"]) > 1
        if len(rows) > 1 or several:
            print(f"\n> {prompt_lines(row['prompt'])}")
        for name, text in row["answers"].items():
            print(f"[{name}]\n{text}" if several else text)
