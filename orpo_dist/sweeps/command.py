"""``orpo-dist sweep``: what it does, and what it says."""

from __future__ import annotations

import argparse
from pathlib import Path

from orpo_dist.base.exits import EXIT_CRASH
from orpo_dist.base.failure import say
from orpo_dist.sweeps.found.page import REPORT
from orpo_dist.sweeps.found.results import read_results
from orpo_dist.sweeps.running.driver import SweepInterrupted, sweep
from orpo_dist.sweeps.running.records import crashed_trials
from orpo_dist.sweeps.searched.config import SweepConfig


def run_sweep(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes. options: with the sweep, as ``made``."""
    config: SweepConfig = options.made
    try:
        sweep(
            config, resume=options.resume, retry_failed=options.retry_failed, rounds=options.rounds
        )
    except SweepInterrupted as stop:
        say(str(stop))
        return stop.exit_code
    project = Path(config.project_name).expanduser().resolve()
    print(project / REPORT)
    if crashed := crashed_trials(project):
        say(
            f"trial {crashed[0].name} failed, {crashed[0].why}, and {len(crashed) - 1} more: "
            "--resume --retry-failed tries them again"
        )
        return EXIT_CRASH
    return 0 if read_results(project).best is not None else EXIT_CRASH
