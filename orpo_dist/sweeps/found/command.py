"""``orpo-dist report``: of a sweep here, of a run in its own room."""

from __future__ import annotations

import argparse
from pathlib import Path

from orpo_dist.runs import command as runs
from orpo_dist.sweeps.found.page import write_page
from orpo_dist.sweeps.protocol import holds_sweep


def run_report(options: argparse.Namespace) -> int:
    """Write the page of a sweep, or of a run, again; ``UserError`` where it is neither."""
    folder = Path(options.run)
    if not holds_sweep(folder):
        return runs.run_report(options)
    print(write_page(folder))
    return 0
