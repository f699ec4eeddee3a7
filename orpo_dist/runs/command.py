"""``orpo-dist report`` of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from orpo_dist.runs.report import write_report


def run_report(options: argparse.Namespace) -> int:
    """Write the page of a run again; ``UserError`` where the folder holds none."""
    print(write_report(Path(options.run)))
    return 0
