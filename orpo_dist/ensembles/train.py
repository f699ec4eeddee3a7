"""``orpo-dist ensemble train``: members as the trials of a sweep, or taken from a finished one."""

from __future__ import annotations

import argparse
from pathlib import Path

from orpo_dist.base.console import quieten_libraries
from orpo_dist.ensembles.listing import Listed, write_listing
from orpo_dist.ensembles.picking import pick
from orpo_dist.sweeps.command import run_sweep


def run_train(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    if options.from_sweep is not None:
        return _collect(Path(options.from_sweep).expanduser(), options)
    code = run_sweep(options)
    return code or _collect(Path(options.made.project_name).expanduser(), options)


def _collect(project: Path, options: argparse.Namespace) -> int:
    """Pick the members and write ``ensemble.json``."""
    quieten_libraries()
    paths = pick(project, options.top_k, options.pick_on, {}, options.full_precision)
    folder = Path(options.output).expanduser() if options.output else project
    file = write_listing(folder, [Listed(path) for path in paths], sweep=str(project))
    for path in paths:
        print(path)
    print(file)
    return 0
