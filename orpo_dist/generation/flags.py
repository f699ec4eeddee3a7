"""The flags of ``orpo-dist generate``; those of prompts and sampling serve others too."""

from __future__ import annotations

import argparse
from typing import Any

from orpo_dist.base.pages import output_path
from orpo_dist.base.types import UserError
from orpo_dist.models.flags import add_full_precision_flag


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, what to answer, and how."""
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
    add_sampling_flags(parser)
    parser.set_defaults(check=check_generate)


def check_generate(options: argparse.Namespace) -> None:
    """``UserError`` for mistakes, before anything is loaded."""
    sampling_options(options)
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: is out of range")
    if options.chat and (options.prompt or options.prompts_file or options.json):
        raise UserError("--chat takes its prompts from the keyboard and writes no file")
    if options.json:
        output_path("json", options.json)


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """What to answer, in words and in files."""
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument(
        "--prompts-file", metavar="FILE",
        help="text with a prompt a line, or JSON, JSONL, CSV, Parquet with a column of prompts",
    )  # fmt: skip
    parser.add_argument(
        "--prompt-text-column", default="prompt", metavar="NAME", help="(default: prompt)"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message before every prompt")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How answers are drawn; the names and meanings of transformers."""
    parser.add_argument("--max-new-tokens", type=int, default=128, help="(default: 128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="(default: 1, no cut)")
    parser.add_argument("--top-k", type=int, default=0, help="(default: 0, no cut)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="(default: 1, none)")
    parser.add_argument("--num-beams", type=int, default=1, help="(default: 1, no beam search)")
    parser.add_argument("--seed", type=int, default=42, help="of sampling (default: 42)")


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
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
