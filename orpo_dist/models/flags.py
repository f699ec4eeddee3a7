"""Flags about how a model is loaded."""

from __future__ import annotations

import argparse


def add_full_precision_flag(parser: argparse.ArgumentParser) -> None:
    """``--full-precision``, for what loads adapters."""
    parser.add_argument(
        "--full-precision", action="store_true",
        help="load the base of an adapter unquantised, also where it was trained on int4 or int8",
    )  # fmt: skip
