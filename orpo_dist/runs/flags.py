"""The flags of ``orpo-dist report``."""

from __future__ import annotations

import argparse


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """Of which folder."""
    parser.add_argument("run", help="a run folder, or the folder of a sweep")
