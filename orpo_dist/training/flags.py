"""The flags of ``orpo-dist train``, and what is said of them before anything is loaded."""

from __future__ import annotations

import argparse

from orpo_dist.config import dump_config
from orpo_dist.config.flags import add_config_flags, config_of


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """A file of settings, and a flag for every one of them."""
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file of settings; flags win over it"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the settings and stop")
    parser.set_defaults(check=check_train)
    add_config_flags(parser)


def check_train(options: argparse.Namespace) -> int | None:
    """``UserError`` for mistakes; 0 after a dry run."""
    config = config_of(options)
    if not options.dry_run:
        return None
    print(dump_config(config), end="")
    return 0
