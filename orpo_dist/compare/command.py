"""``orpo-dist compare``: make the page, and tally what people saved."""

from __future__ import annotations

import argparse
import json
import logging
import random
from pathlib import Path
from typing import Any

from orpo_dist.base.pages import output_path, write_output
from orpo_dist.base.types import UserError
from orpo_dist.compare.flags import checked_outputs, key_of, refuse_other_key
from orpo_dist.compare.page import comparison_page
from orpo_dist.compare.sheet import Sheet, make_sheet, read_answers
from orpo_dist.compare.tally import format_tally, read_ratings, tally
from orpo_dist.generation.flags import sampling_options
from orpo_dist.generation.prompts import Prompt, read_prompts

logger = logging.getLogger("orpo_dist")


def run_compare(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    if options.tally:
        return _tally(options)
    sampling = sampling_options(options)
    output, key = checked_outputs(options)
    prompts, answers = _answers(options, sampling)
    sheet = make_sheet((options.models[0], options.models[1]), prompts, answers, options.seed)
    if same := len(prompts) - len(sheet.items):
        logger.info("%d prompts left out, which both answer alike", same)
    refuse_other_key(key, comparison=sheet.id)
    try:
        sheet.write_key(key)
    except OSError as error:
        raise UserError(f"key {key}: cannot be written ({error.strerror})") from error
    write_output("output", output, comparison_page(sheet))
    print(f"{output}: {len(sheet.items)} comparisons; {key} says who wrote what: keep it apart")
    return 0


def _answers(
    options: argparse.Namespace, sampling: dict[str, Any]
) -> tuple[list[Prompt], list[list[str]]]:
    """The prompts and, of both models, the answers to them."""
    written = {name: read_answers(Path(name)) for name in options.models if name.endswith(".jsonl")}
    if options.prompts:
        prompts = read_prompts(
            [], options.prompts, options.prompt_text_column, options.system, flag="prompts"
        )
    elif written:
        known = [set(answers) for answers in written.values()]
        prompts = [prompt for text, (prompt, _) in next(iter(written.values())).items()
                   if all(text in answers for answers in known)]  # fmt: skip
    else:
        raise UserError("prompts is missing: pass --prompts FILE")
    if options.limit is not None and options.limit < len(prompts):
        drawn = random.Random(options.seed).sample(range(len(prompts)), options.limit)  # noqa: S311
        prompts = [prompts[n] for n in sorted(drawn)]
    if not prompts:
        raise UserError("compare: the two files share no prompt")
    found = {name: _look_up(name, known, prompts) for name, known in written.items()}
    if models := [name for name in options.models if name not in written]:
        from orpo_dist.compare.generating import generate  # answers that are there need no torch

        found |= generate(models, prompts, options, sampling)
    return prompts, [found[name] for name in options.models]


def _look_up(name: str, written: dict[str, Any], prompts: list[Prompt]) -> list[str]:
    texts = [json.dumps(prompt) for prompt in prompts]
    missing = next((text for text in texts if text not in written), None)
    if missing is not None:
        raise UserError(f"answers {name}: hold none to the prompt {missing[:60]}")
    return [written[text][1] for text in texts]


def _tally(options: argparse.Namespace) -> int:
    output = output_path("json", options.json) if options.json else None
    key = Path(options.key) if options.key else key_of(Path(options.output))
    sheet = Sheet.read_key(key)
    found = tally(sheet, [read_ratings(Path(path), sheet) for path in options.tally])
    print(format_tally(found))
    if output is not None:
        write_output("json", output, json.dumps(found, indent=2) + "\n")
    return 0
