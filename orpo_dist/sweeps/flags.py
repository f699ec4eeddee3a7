"""The flags of ``orpo-dist sweep``, and the sweep that they describe."""

from __future__ import annotations

import argparse
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.config.flags import add_config_flags, config_values
from orpo_dist.sweeps.searched.config import SweepConfig, asks_libraries
from orpo_dist.sweeps.searched.files import dump_sweep, load_sweep, shipped

SETTINGS = {  # of the sweep itself, as flags
    "workers_per_trial": int, "engine": str, "max_concurrent_trials": int, "num_samples": int,
    "repeats": int, "metric": str, "time_budget": str, "keep_models": str,
}  # fmt: skip


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    """Which sweep, its flags, and those of a run for its base."""
    parser.add_argument("sweep", help=f"a sweep file, or one of {', '.join(shipped())}")
    add_sweep_settings(parser)


def add_sweep_settings(parser: argparse.ArgumentParser) -> None:
    """All flags of a sweep but its name."""
    parser.add_argument(
        "--resume", action="store_true", help="go on with a sweep that was stopped, or start it"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="with --resume: its failed trials as well"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, metavar="N",
        help="refine: after the sweep, N - 1 finer ones around the best point so far",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the sweep and its points")
    for name, kind in SETTINGS.items():
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=f"sweep.{name}", type=kind, metavar="VALUE",
            default=argparse.SUPPRESS, help=SweepConfig.model_fields[name].description,
        )  # fmt: skip
    add_config_flags(
        parser, without=("overwrite", "resume_from_checkpoint", "save_strategy", "save_steps")
    )
    parser.set_defaults(check=check_sweep, renamed={"--stage": "--rounds"})


def check_sweep(options: argparse.Namespace) -> int | None:
    """Put the sweep into the options, as ``made``; ``UserError``; 0 after a dry run."""
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds}: rounds count from 1")
    if options.retry_failed and not options.resume:
        raise UserError("--retry-failed needs --resume")
    options.made = sweep = _sweep_of(options)
    if not options.dry_run:
        return None
    if asks_libraries(sweep):
        from orpo_dist.sweeps.running.shared import refuse_unknown  # asks transformers: seconds

        refuse_unknown(sweep)
    print(dump_sweep(sweep), end="")
    for point in [] if sweep.proposes else sweep.points:
        print("#", ", ".join(f"{name}={value}" for name, value in point.items()))
    return 0


def _sweep_of(options: argparse.Namespace) -> SweepConfig:
    """The sweep that the flags describe; ``UserError`` for mistakes."""
    own = {
        key.partition(".")[2]: _number(value)
        for key, value in vars(options).items()
        if key.startswith("sweep.")
    }
    base = config_values(options)
    config = load_sweep(options.sweep, base, own)
    if searched := [name for name in base if name in config.search_space]:
        flag = "--" + searched[0].replace("_", "-")
        raise UserError(f"{flag}: this sweep searches {searched[0]}; leave it out")
    return config


def _number(value: Any) -> Any:
    """``--keep-models 3`` and ``--time-budget 600`` are numbers as in YAML."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value
