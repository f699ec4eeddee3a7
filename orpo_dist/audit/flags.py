"""The flags of ``orpo-dist data audit``."""

from __future__ import annotations

import argparse

from orpo_dist.config.flags import add_config_flags


def add_data_verbs(parser: argparse.ArgumentParser) -> None:
    """The verbs of ``orpo-dist data``."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    text = "find what is wrong with preference data, and what each length limit would cost"
    add_audit_flags(verbs.add_parser("audit", help=text, description=text, allow_abbrev=False))


def add_audit_flags(parser: argparse.ArgumentParser) -> None:
    """What to read, by which settings, and what to write."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="files, folders or hub ids")
    parser.add_argument("--config", metavar="FILE", help="take model and data settings from a run")
    parser.add_argument("--json", metavar="FILE", help="write every finding, row and figure")
    parser.add_argument("--html", metavar="FILE", help="write one page with plots")
    parser.add_argument(
        "--clean", metavar="FILE", help="write the rows that stay (.jsonl), and .dropped.csv"
    )
    parser.add_argument(
        "--drop", nargs="*", metavar="RULE", help="what --clean drops, by the names of the rules"
    )
    add_config_flags(
        parser,
        groups=("data",),
        also=("model", "model_revision", "trust_remote_code"),
        without=("data_path", "data_weights", "data_temperature", "strict_data", "overlong"),
    )
