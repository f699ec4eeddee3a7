"""``orpo-dist ensemble train``: members as the trials of a sweep, or taken from a finished one."""

from __future__ import annotations

import argparse
from pathlib import Path

from orpo_dist.base.types import UserError
from orpo_dist.ensembles.listing import FILE
from orpo_dist.evaluation.command import add_full_precision_flag


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.sweeps.command import add_sweep_settings
    from orpo_dist.sweeps.searched.files import shipped

    parser.add_argument(
        "sweep", nargs="?",
        help=f"a sweep file whose trials become members, or one of {', '.join(shipped())}",
    )  # fmt: skip
    parser.add_argument("--from-sweep", metavar="FOLDER", help="train nothing, take its trials")
    parser.add_argument("--top-k", type=int, metavar="K", help="at most K members (default: all)")
    parser.add_argument(
        "--pick-on", nargs="+", default=[], metavar="FILE",
        help="held-out pairs: pick members that vote best together on them",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FOLDER", help="where ensemble.json goes (default: "
                        "the folder of the sweep)")  # fmt: skip
    add_full_precision_flag(parser)
    add_sweep_settings(parser)


def run_train(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    if (options.sweep is None) == (options.from_sweep is None):
        raise UserError("ensemble train needs a sweep file, or --from-sweep with its folder")
    if options.top_k is not None and options.top_k < 1:
        raise UserError(f"--top-k {options.top_k}: must be at least 1")
    if options.full_precision and not options.pick_on:
        raise UserError("--full-precision: no model is loaded without --pick-on; leave it out")
    if options.output is not None and (file := Path(options.output).expanduser() / FILE).exists():
        raise UserError(f"{file}: exists already; choose another --output")
    if options.from_sweep is not None:
        _refuse_training_flags(options)
        return _collect(Path(options.from_sweep).expanduser(), options)
    from orpo_dist.sweeps.command import run_sweep, sweep_of

    project = Path(sweep_of(options).project_name).expanduser()
    code = run_sweep(options)
    return code if code or options.dry_run else _collect(project, options)


def _refuse_training_flags(options: argparse.Namespace) -> None:
    given = [
        key.partition(".")[2] for key in vars(options) if key.startswith(("config.", "sweep."))
    ]
    given += [name for name in ("dry_run", "resume", "retry_failed") if getattr(options, name)]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise UserError(f"{flag}: with --from-sweep nothing is trained; leave it out")


def _collect(project: Path, options: argparse.Namespace) -> int:
    """Pick the members and write ``ensemble.json``."""
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.ensembles.listing import Listed, write_listing
    from orpo_dist.ensembles.picking import pick

    quieten_libraries()
    paths = pick(project, options.top_k, options.pick_on, {}, options.full_precision)
    folder = Path(options.output).expanduser() if options.output else project
    file = write_listing(folder, [Listed(path) for path in paths], sweep=str(project))
    for path in paths:
        print(path)
    print(file)
    return 0
