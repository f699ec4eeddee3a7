"""The command line. Only argparse is imported until a command is known to run."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from orpo_dist.base.console import set_up_logging
from orpo_dist.base.exits import EXIT_CRASH, EXIT_INTERRUPTED, EXIT_TEMPORARY, EXIT_USER_ERROR
from orpo_dist.base.failure import crash, rank_among_others, say
from orpo_dist.base.types import TemporaryFailure, UserError, noted, refuse
from orpo_dist.engines.allocator import grow_segments

if TYPE_CHECKING:
    from orpo_dist.config import ORPOConfig

# Packages that only some of what can be asked for needs; imported there and nowhere else.
OPTIONAL = ("datasets", "matplotlib", "peft", "psutil", "pyarrow", "scipy")

DESCRIPTION = "Fine-tune language models on preferences with ORPO: fast, exact, distributed."


class Command(NamedTuple):
    """A subcommand: its line of help, and the functions behind it as ``module:function``.

    add_flags takes the subcommand's parser, run its options; both are imported when it is called.
    """

    help: str
    add_flags: str
    run: str


COMMANDS = {
    "train": Command(
        "train a model on a file of preferences",
        "cli:add_train_flags", "cli:run_train",
    ),
    "evaluate": Command(
        "accuracy, perplexity and margins of models, and which is better",
        "evaluation.command:add_evaluate_flags", "evaluation.command:run_evaluate",
    ),
    "generate": Command(
        "let a model answer prompts, also beside its base, or chat",
        "generation.command:add_generate_flags", "generation.command:run_generate",
    ),
    "ensemble": Command(
        "many models as one: average, vote, best_of, soups",
        "ensembles.command:add_verbs", "ensembles.command:run_verb",
    ),
    "compare": Command(
        "let people judge two models, blind, and count what they said",
        "compare.command:add_compare_flags", "compare.command:run_compare",
    ),
    "report": Command(
        "write report.html of a run or a sweep again",
        "cli:add_report_flags", "cli:run_report",
    ),
    "data": Command(
        "what is wrong with preference data: orpo-dist data audit FILE",
        "audit.command:add_data_verbs", "audit.command:run_audit",
    ),
    "plan": Command(
        "what a training will need and how to launch it, from config.json alone",
        "planning.command:add_plan_flags", "planning.command:run_plan",
    ),
    "launch": Command(
        "run a command on many processes: orpo-dist launch zero2 -- train ...",
        "launch.command:add_launch_flags", "cli:run_launch",
    ),
    "sweep": Command(
        "find the best alpha and learning rate: many trainings side by side, on Ray",
        "sweeps.command:add_sweep_flags", "sweeps.command:run_sweep",
    ),
    "slurm": Command(
        "batch scripts for SLURM, and what they call",
        "launch.slurm_commands:add_verbs", "cli:run_slurm",
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    set_up_logging()
    grow_segments()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        say(f"error: {error}")
        return EXIT_USER_ERROR
    except TemporaryFailure as error:
        say(f"failed for now: {error}")
        return EXIT_TEMPORARY
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        crash(error)
        return EXIT_CRASH


def _run(arguments: list[str]) -> int:
    parser = _Parser(
        prog="orpo-dist",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="'orpo-dist COMMAND --help' lists the settings of a command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    wanted = next((a for a in arguments if not a.startswith("-")), None)
    for name, entry in COMMANDS.items():
        text = entry.help
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == wanted:  # the flags of train come from the config: build only what is used
            _function(entry.add_flags)(command)
    inner: list[str] = []
    if wanted == "launch" and "--" in arguments:
        cut = arguments.index("--")
        arguments, inner = arguments[:cut], arguments[cut + 1 :]
    options, unknown = parser.parse_known_args(arguments)
    options.inner = inner
    if options.command is None:
        parser.print_help()
        return EXIT_USER_ERROR
    _refuse_unknown(unknown, options)
    with _missing_packages_named():
        return int(_function(COMMANDS[options.command].run)(options))


@contextlib.contextmanager
def _missing_packages_named() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        raise UserError(
            f"this needs {error.name}, which is not installed: pip install {error.name}"
        ) from error


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"orpo_dist.{module}"), name)


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see '{self.prog} --help')")


def _refuse_unknown(unknown: list[str], options: argparse.Namespace) -> None:
    """One ``UserError`` for all unknown flags and for wrong settings beside them."""
    if not unknown:
        return
    from orpo_dist.config import check_settings, load_config
    from orpo_dist.config.flags import config_values

    words = [word.partition("=")[0] for word in unknown]
    flags = [word for word in words if word.startswith("--")]
    found = [f"unexpected argument '{words[0]}'"] if words[0] not in flags else []
    found += [_explain_flag(flag) for flag in dict.fromkeys(flags)]
    with noted(found):
        if "config" in options:
            load_config(options.config, config_values(options))
        else:  # these settings are laid over others
            check_settings(config_values(options))
    refuse(found)


def _explain_flag(word: str) -> str:
    from orpo_dist.config import ORPOConfig
    from orpo_dist.config.names import explain_unknown

    name = word[2:].replace("-", "_")
    if name in ORPOConfig.model_fields:
        flag = _flag(name)
        why = f"did you mean {flag}?" if flag != word else "this command does not take it"
        return f"unknown flag '{word}': {why}"
    return explain_unknown(name, ORPOConfig.model_fields, "flag", _flag)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# --- the commands that have no room of their own


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.config.flags import add_config_flags

    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file of settings; flags win over it"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the settings and stop")
    add_config_flags(parser)


def run_train(options: argparse.Namespace) -> int:
    from orpo_dist.config import dump_config, load_config
    from orpo_dist.config.flags import config_values

    config = load_config(options.config, config_values(options))
    if options.dry_run:
        print(dump_config(config), end="")
        return 0
    from orpo_dist.engines import runtime
    from orpo_dist.engines.interruption import Interrupted
    from orpo_dist.training.run import train

    try:
        handle = train(config)
    except Interrupted as stop:
        if not rank_among_others():
            say(str(stop))
        return stop.exit_code
    if not rank_among_others():
        print(handle.path)
    runtime.leave()
    return 0


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run folder, or the folder of a sweep")


def run_report(options: argparse.Namespace) -> int:
    folder = Path(options.run)
    if (folder / "sweep.yaml").exists():
        from orpo_dist.sweeps.found.page import write_page

        print(write_page(folder))
        return 0
    from orpo_dist.runs.report import write_report

    print(write_report(folder))
    return 0


def run_launch(options: argparse.Namespace) -> int:
    from orpo_dist.launch.command import find_preset, launch

    found: list[str] = []
    config = None
    with noted(found):
        find_preset(options)
    with noted(found):
        config = _inner_config(options.inner)
    refuse(found)
    return launch(options, config)


def run_slurm(options: argparse.Namespace) -> int:
    from orpo_dist.launch.slurm_commands import run_verb

    def config_of(line: Sequence[str]) -> ORPOConfig | None:
        return _inner_config(list(line)) if line[0] == "train" else None

    return run_verb(options, config_of)


def _inner_config(command: list[str]) -> ORPOConfig | None:
    """Check what shall be launched, so that mistakes are told once; the config, if it trains."""
    evaluates = command[:1] == ["evaluate"] or command[:2] == ["ensemble", "evaluate"]
    if command[:1] != ["train"] and not evaluates:
        raise UserError(
            "launch needs 'train ...' or 'evaluate ...' after --, e.g. "
            "'orpo-dist launch zero2 -- train --config run.yaml'"
        )
    parser = _Parser(prog=f"orpo-dist {command[0]}", allow_abbrev=False)
    _function(COMMANDS[command[0]].add_flags)(parser)
    options, unknown = parser.parse_known_args(command[1:])
    _refuse_unknown(unknown, options)
    if evaluates:
        return None
    from orpo_dist.config import load_config
    from orpo_dist.config.flags import config_values

    return load_config(options.config, config_values(options))
