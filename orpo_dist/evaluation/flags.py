"""The flags of ``orpo-dist evaluate``; those of data and outputs serve ensembles too."""

from __future__ import annotations

import argparse
from pathlib import Path

from orpo_dist.base.pages import output_path
from orpo_dist.base.types import UserError
from orpo_dist.config import build_config
from orpo_dist.config.flags import add_config_flags, config_values
from orpo_dist.models.flags import add_full_precision_flag


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """Which models, on which pairs, texts and tasks."""
    parser.add_argument(
        "model", nargs="+", metavar="MODEL", help="run folders, model folders or hub ids"
    )
    add_output_flags(parser)
    parser.add_argument(
        "--text", nargs="+", default=[], metavar="FILE", help="text files to read for perplexity"
    )
    for flag, words in (
        ("--text-window", "tokens seen at once (default: the context, at most 1024)"),
        ("--text-stride", "tokens from one window to the next (default: half a window)"),
    ):
        parser.add_argument(flag, type=int, metavar="TOKENS", help=words)
    parser.add_argument(
        "--tasks", metavar="NAMES", help="standard tasks of lm-evaluation-harness, a comma list"
    )
    parser.add_argument("--tasks-path", metavar="FOLDER", help="further task definitions for it")
    parser.add_argument("--tasks-limit", type=int, metavar="N", help="examples per task")
    add_full_precision_flag(parser)
    add_data_flags(parser)
    parser.set_defaults(check=check_evaluate)


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Where results go."""
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--html", metavar="FILE", help="write one page with plots")


def add_data_flags(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """Which pairs, and how to read and score them."""
    add_config_flags(
        parser,
        groups=("data",),
        also=("batch_size", "attention", "mixed_precision", "trust_remote_code",
              "max_tokens_per_microbatch"),
        without=("valid_data_path", "data_weights", "data_temperature", *without),
    )  # fmt: skip


def check_evaluate(options: argparse.Namespace) -> None:
    """``UserError`` for mistakes, before anything is loaded."""
    build_config(config_values(options))
    checked_outputs(options)


def checked_outputs(options: argparse.Namespace) -> dict[str, Path]:
    """Where ``--json`` and ``--html`` go."""
    outputs = {
        name: output_path(name, value)
        for name in ("json", "html")
        if (value := getattr(options, name)) is not None
    }
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise UserError("json and html name the same file; choose another for one of them")
    return outputs
