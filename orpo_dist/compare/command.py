"""``orpo-dist compare``: make the page, and tally what people saved."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from orpo_dist.base.pages import output_path, write_output
from orpo_dist.base.types import UserError
from orpo_dist.evaluation.command import add_full_precision_flag
from orpo_dist.generation.prompts import Prompt, read_prompts, sampling_flags, sampling_options
from orpo_dist.runs.folder import read_json

logger = logging.getLogger("orpo_dist")


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="*", metavar="MODEL",
        help="two models, or files of answers (.jsonl) that 'generate --json' wrote",
    )  # fmt: skip
    parser.add_argument("--prompts", metavar="FILE", help="as --prompts-file of generate")
    parser.add_argument("--prompt-text-column", default="prompt", metavar="NAME")
    parser.add_argument("--system", metavar="TEXT", help="a system message before every prompt")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N prompts, drawn by --seed")
    parser.add_argument(
        "--output", metavar="FILE", default="compare.html", help="(default: compare.html)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="prompts at once (default: 8)")
    add_full_precision_flag(parser)
    parser.add_argument("--tally", nargs="+", metavar="RATINGS", help="count saved ratings")
    parser.add_argument(
        "--key", metavar="FILE", help="who wrote what (default: beside --output, .key.json)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the tally as JSON")
    sampling_flags(parser)


def run_compare(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    if options.tally:
        return _tally(options)
    if len(options.models) != 2:
        raise UserError("compare needs two models, or --tally with files of ratings")
    if options.json:
        raise UserError("--json is for --tally; the page goes to --output")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: must be at least 1")
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: is out of range")
    sampling = sampling_options(options)
    output, key = _checked_outputs(options)
    from orpo_dist.compare.page import comparison_page
    from orpo_dist.compare.sheet import make_sheet

    prompts, answers = _answers(options, sampling)
    sheet = make_sheet((options.models[0], options.models[1]), prompts, answers, options.seed)
    if same := len(prompts) - len(sheet.items):
        logger.info("%d prompts left out, which both answer alike", same)
    _refuse_other_key(key, comparison=sheet.id)
    try:
        sheet.write_key(key)
    except OSError as error:
        raise UserError(f"key {key}: cannot be written ({error.strerror})") from error
    write_output("output", output, comparison_page(sheet))
    print(f"{output}: {len(sheet.items)} comparisons; {key} says who wrote what: keep it apart")
    return 0


def _checked_outputs(options: argparse.Namespace) -> tuple[Path, Path]:
    """Where the page and its key go, before anything is loaded."""
    output = output_path("output", options.output)
    key = output_path("key", options.key or str(_key_of(output)))
    if output.resolve() == key.resolve():
        raise UserError("output and key name the same file; choose another for one of them")
    _refuse_other_key(key, a=options.models[0], b=options.models[1])
    return output, key


def _refuse_other_key(key: Path, **same: str) -> None:
    """Only the key of the same comparison is written over: ratings under way need theirs."""
    content = read_json(key)
    if key.exists() and any(content.get(name) != value for name, value in same.items()):
        raise UserError(
            f"key {key}: belongs to another comparison; choose another --output or --key, or "
            "delete it if no ratings are under way"
        )


def _key_of(page: Path) -> Path:
    return page.with_suffix(".key.json")


def _answers(
    options: argparse.Namespace, sampling: dict[str, Any]
) -> tuple[list[Prompt], list[list[str]]]:
    """The prompts and, of both models, the answers to them."""
    from orpo_dist.compare.sheet import read_answers

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
        import random

        drawn = random.Random(options.seed).sample(range(len(prompts)), options.limit)  # noqa: S311
        prompts = [prompts[n] for n in sorted(drawn)]
    if not prompts:
        raise UserError("compare: the two files share no prompt")
    return prompts, [
        _look_up(name, written[name], prompts) if name in written
        else _generate(name, prompts, options, sampling)
        for name in options.models
    ]  # fmt: skip


def _look_up(name: str, written: dict[str, Any], prompts: list[Prompt]) -> list[str]:
    texts = [json.dumps(prompt) for prompt in prompts]
    missing = next((text for text in texts if text not in written), None)
    if missing is not None:
        raise UserError(f"answers {name}: hold none to the prompt {missing[:60]}")
    return [written[text][1] for text in texts]


def _generate(
    model: str, prompts: list[Prompt], options: argparse.Namespace, sampling: dict[str, Any]
) -> list[str]:
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.generation.speakers import Speaker, answers
    from orpo_dist.models.trained import load, run_configs

    quieten_libraries()
    models = [name for name in options.models if not name.endswith(".jsonl")]
    config = run_configs(models)[models.index(model)]
    speaker = Speaker(model, load(model, config, options.full_precision))
    from transformers import set_seed

    set_seed(options.seed)
    return list(answers(speaker, prompts, options.batch_size, **sampling))


def _tally(options: argparse.Namespace) -> int:
    from orpo_dist.compare.sheet import Sheet
    from orpo_dist.compare.tally import format_tally, read_ratings, tally

    if options.models:
        raise UserError("--tally counts ratings and takes no models")
    output = output_path("json", options.json) if options.json else None
    key = Path(options.key) if options.key else _key_of(Path(options.output))
    sheet = Sheet.read_key(key)
    found = tally(sheet, [read_ratings(Path(path), sheet) for path in options.tally])
    print(format_tally(found))
    if output is not None:
        write_output("json", output, json.dumps(found, indent=2) + "\n")
    return 0
