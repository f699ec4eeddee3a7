"""``orpo-dist sweep``: its flags, and what it says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_dist.base.exits import EXIT_CRASH
from orpo_dist.base.types import UserError

if TYPE_CHECKING:
    from orpo_dist.sweeps.searched.config import SweepConfig

SETTINGS = {  # of the sweep itself, as flags
    "workers_per_trial": int, "engine": str, "max_concurrent_trials": int, "num_samples": int,
    "repeats": int, "metric": str, "time_budget": str, "keep_models": str,
}  # fmt: skip


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    """Which sweep, its flags, and those of a run for its base."""
    from orpo_dist.sweeps.searched.files import shipped

    parser.add_argument("sweep", help=f"a sweep file, or one of {', '.join(shipped())}")
    add_sweep_settings(parser)


def add_sweep_settings(parser: argparse.ArgumentParser) -> None:
    """All flags of a sweep but its name."""
    from orpo_dist.config.flags import add_config_flags
    from orpo_dist.sweeps.searched.config import SweepConfig

    parser.add_argument(
        "--resume", action="store_true", help="go on with a sweep that was stopped, or start it"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="with --resume: its failed trials as well"
    )
    parser.add_argument(
        "--stage", type=int, default=1, metavar="N",
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


def run_sweep(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    from orpo_dist.sweeps.searched.files import dump_sweep

    if options.stage < 1:
        raise UserError(f"--stage {options.stage}: stages count from 1")
    if options.retry_failed and not options.resume:
        raise UserError("--retry-failed needs --resume")
    config = sweep_of(options)
    if options.dry_run:
        from orpo_dist.sweeps.running.shared import refuse_unknown

        refuse_unknown(config)
        print(dump_sweep(config), end="")
        for point in [] if config.proposes else config.points():
            print("#", ", ".join(f"{name}={value}" for name, value in point.items()))
        return 0
    from orpo_dist.base.failure import say
    from orpo_dist.sweeps.found.page import REPORT
    from orpo_dist.sweeps.found.results import read_results
    from orpo_dist.sweeps.protocol import crashed_trials
    from orpo_dist.sweeps.running.driver import SweepInterrupted, sweep

    try:
        sweep(
            config, resume=options.resume, retry_failed=options.retry_failed, stages=options.stage
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


def sweep_of(options: argparse.Namespace) -> SweepConfig:
    """The sweep that the flags describe; ``UserError`` for mistakes."""
    from orpo_dist.config.flags import config_values
    from orpo_dist.sweeps.searched.files import load_sweep

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
