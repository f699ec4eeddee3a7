"""``orpo-dist generate``: what it does with its flags."""

from __future__ import annotations

import argparse
import json
from typing import Any

from transformers import set_seed

from orpo_dist.base.console import quieten_libraries
from orpo_dist.base.pages import output_path, write_output
from orpo_dist.generation.chat import chat
from orpo_dist.generation.flags import sampling_options
from orpo_dist.generation.prompts import Prompt, prompt_lines, read_prompts
from orpo_dist.generation.speakers import Speaker, answers, speakers


def prompts_of(options: argparse.Namespace) -> list[Prompt]:
    """The prompts that the flags name."""
    return read_prompts(
        options.prompt, options.prompts_file, options.prompt_text_column, options.system
    )


def run_generate(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    sampling = sampling_options(options)
    prompts = [] if options.chat else prompts_of(options)
    output = output_path("json", options.json) if options.json else None
    quieten_libraries()
    who = speakers(options.model, options.beside, options.full_precision)
    set_seed(options.seed)
    if options.chat:
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
