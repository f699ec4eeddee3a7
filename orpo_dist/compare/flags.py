"""The flags of ``orpo-dist compare``, and what is said of them before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from orpo_dist.base.pages import output_path
from orpo_dist.base.types import UserError
from orpo_dist.generation.flags import add_sampling_flags, sampling_options
from orpo_dist.models.flags import add_full_precision_flag
from orpo_dist.runs.folder import read_json


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """Two models and prompts, or ratings to count."""
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
    add_sampling_flags(parser)
    parser.set_defaults(check=check_compare)


def check_compare(options: argparse.Namespace) -> None:
    """``UserError`` for mistakes, before anything is loaded."""
    if options.tally:
        if options.models:
            raise UserError("--tally counts ratings and takes no models")
        return
    if len(options.models) != 2:
        raise UserError("compare needs two models, or --tally with files of ratings")
    if options.json:
        raise UserError("--json is for --tally; the page goes to --output")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: must be at least 1")
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: is out of range")
    sampling_options(options)
    checked_outputs(options)


def checked_outputs(options: argparse.Namespace) -> tuple[Path, Path]:
    """Where the page and its key go, before anything is loaded."""
    output = output_path("output", options.output)
    key = output_path("key", options.key or str(key_of(output)))
    if output.resolve() == key.resolve():
        raise UserError("output and key name the same file; choose another for one of them")
    refuse_other_key(key, a=options.models[0], b=options.models[1])
    return output, key


def refuse_other_key(key: Path, **same: str) -> None:
    """Only the key of the same comparison is written over: ratings under way need theirs."""
    content = read_json(key)
    if key.exists() and any(content.get(name) != value for name, value in same.items()):
        raise UserError(
            f"key {key}: belongs to another comparison; choose another --output or --key, or "
            "delete it if no ratings are under way"
        )


def key_of(page: Path) -> Path:
    """Where the key of a page is kept, unless a flag says otherwise."""
    return page.with_suffix(".key.json")
