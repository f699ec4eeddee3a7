"""The command line. Only argparse is imported until a command is known to run."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from orpo_dist import __version__
from orpo_dist.base.console import set_up_logging
from orpo_dist.base.exits import EXIT_CRASH, EXIT_INTERRUPTED, EXIT_TEMPORARY, EXIT_USER_ERROR
from orpo_dist.base.failure import crash, say
from orpo_dist.base.types import TemporaryFailure, UserError
from orpo_dist.engines.allocator import grow_segments

if TYPE_CHECKING:
    from orpo_dist.config import ORPOConfig

# Packages that only some of what can be asked for needs; imported there and nowhere else.
OPTIONAL = ("datasets", "matplotlib", "peft", "psutil", "pyarrow", "scipy")

DESCRIPTION = "Fine-tune language models on preferences with ORPO: fast, exact, distributed."

OWN_FLAGS = ("-h", "--help", "--version")  # which stand before a command


class Command(NamedTuple):
    """A subcommand: its line of help, and the functions behind it as ``module:function``.

    flags takes the subcommand's parser; it may set ``check`` in it, a function of the options that
    tells mistakes, and answers dry runs with an exit code, before ``run`` and with it torch is
    imported. run takes the options; of a command that wraps others, and what reads a command line.
    """

    help: str
    flags: str
    run: str
    wraps: bool = False


COMMANDS = {
    "train": Command(
        "train a model on a file of preferences",
        "training.flags:add_train_flags", "training.command:run_train",
    ),
    "evaluate": Command(
        "accuracy, perplexity and margins of models, and which is better",
        "evaluation.flags:add_evaluate_flags", "evaluation.command:run_evaluate",
    ),
    "generate": Command(
        "let a model answer prompts, also beside its base, or chat",
        "generation.flags:add_generate_flags", "generation.command:run_generate",
    ),
    "ensemble": Command(
        "many models as one: average, vote, best_of, soups",
        "ensembles.flags:add_verbs", "ensembles.command:run_verb",
    ),
    "compare": Command(
        "let people judge two models, blind, and count what they said",
        "compare.flags:add_compare_flags", "compare.command:run_compare",
    ),
    "report": Command(
        "write report.html of a run or a sweep again",
        "runs.flags:add_report_flags", "sweeps.found.command:run_report",
    ),
    "data": Command(
        "what is wrong with preference data: orpo-dist data audit FILE",
        "audit.flags:add_data_verbs", "audit.command:run_audit",
    ),
    "plan": Command(
        "what a training will need and how to launch it, from config.json alone",
        "planning.flags:add_plan_flags", "planning.command:run_plan",
    ),
    "launch": Command(
        "run a command on many processes: orpo-dist launch zero2 -- train ...",
        "launch.flags:add_launch_flags", "launch.command:run_launch", wraps=True,
    ),
    "sweep": Command(
        "find the best alpha and learning rate: many trainings side by side, on Ray",
        "sweeps.flags:add_sweep_flags", "sweeps.command:run_sweep",
    ),
    "slurm": Command(
        "batch scripts for SLURM, and what they call",
        "launch.slurm_commands:add_verbs", "launch.slurm_commands:run_verb", wraps=True,
    ),
    "env": Command(
        "versions, devices and folders: what a bug report needs",
        "launch.flags:add_env_flags", "launch.environment:run_env",
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
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"orpo-dist {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    wanted = _wanted(arguments)
    for name, entry in COMMANDS.items():
        text = entry.help
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == wanted:  # the flags of train come from the config: build only what is used
            _function(entry.flags)(command)
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
        return _carry_out(COMMANDS[options.command], options)


def _wanted(arguments: list[str]) -> str | None:
    """The command, which is the first word; ``UserError`` for one that there is not, or a flag."""
    first = arguments[0] if arguments else "--help"
    if first in OWN_FLAGS:
        return None
    if first in COMMANDS:
        return first
    if first[:1] == "-":
        close = difflib.get_close_matches(first, OWN_FLAGS, n=1, cutoff=0.7)
        said = f"did you mean {close[0]}?" if close else "flags stand behind the command"
        raise UserError(f"unknown flag '{first}': {said} (see 'orpo-dist --help')")
    close = difflib.get_close_matches(first, COMMANDS, n=1)
    said = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
    raise UserError(f"unknown command '{first}': {said}")


def _carry_out(command: Command, options: argparse.Namespace) -> int:
    """What can be said of the options alone, then the command itself."""
    check = vars(options).get("check")
    if check is not None and (code := check(options)) is not None:
        return int(code)
    run = _function(command.run)
    return int(run(options, _inner_config) if command.wraps else run(options))


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
    if unknown:
        _function("config.unknown:refuse_unknown")(unknown, options)


def _inner_config(line: Sequence[str]) -> ORPOConfig | None:
    """Check a command line that is to be launched, so that mistakes are told once.

    Its config if it trains; None for any other.
    """
    evaluates = line[:1] == ["evaluate"] or line[:2] == ["ensemble", "evaluate"]
    if line[:1] != ["train"] and not evaluates:
        return None
    parser = _Parser(prog=f"orpo-dist {line[0]}", allow_abbrev=False)
    _function(COMMANDS[line[0]].flags)(parser)
    options, unknown = parser.parse_known_args(line[1:])
    _refuse_unknown(unknown, options)
    return None if evaluates else _function("config.flags:config_of")(options)
