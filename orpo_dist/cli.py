"""The command line. Only argparse is imported until a command is known to run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from orpo_dist.console import set_up_logging
from orpo_dist.exits import EXIT_CRASH, EXIT_INTERRUPTED, EXIT_USER_ERROR
from orpo_dist.failure import crash, rank_among_others, say
from orpo_dist.types import UserError

if TYPE_CHECKING:
    from orpo_dist.config import ORPOConfig

DESCRIPTION = "Fine-tune language models on preferences with ORPO: fast, exact, distributed."
COMMANDS = {
    "train": "train a model on a file of preferences",
    "evaluate": "accuracy, perplexity and margins of models, and which is better",
    "generate": "let a model answer prompts, also beside its base, or chat",
    "ensemble": "many models as one: average, vote, best_of, soups",
    "compare": "let people judge two models, blind, and count what they said",
    "report": "write report.html of a run or a sweep again",
    "data": "what is wrong with preference data: orpo-dist data audit FILE",
    "launch": "run a command on many processes: orpo-dist launch zero2 -- train ...",
    "sweep": "find the best alpha and learning rate: many trainings side by side, on Ray",
    "slurm": "batch scripts for SLURM, and what they call",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    set_up_logging()
    parser = _Parser(
        prog="orpo-dist",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="'orpo-dist COMMAND --help' lists the settings of a command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    wanted = next((a for a in arguments if not a.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == wanted:  # the flags of train come from the config: build only what is used
            _FLAGS[name](command)
    inner: list[str] = []
    if wanted == "launch" and "--" in arguments:
        cut = arguments.index("--")
        arguments, inner = arguments[:cut], arguments[cut + 1 :]
    try:
        options, unknown = parser.parse_known_args(arguments)
        options.inner = inner
        if options.command is None:
            parser.print_help()
            return EXIT_USER_ERROR
        _refuse_unknown(unknown)
        return _RUN[options.command](options)
    except UserError as error:
        say(f"error: {error}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        crash(error)
        return EXIT_CRASH


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see '{self.prog} --help')")


def _refuse_unknown(unknown: list[str]) -> None:
    if not unknown:
        return
    from orpo_dist.config import ORPOConfig
    from orpo_dist.config.names import explain_unknown

    word = unknown[0].partition("=")[0]
    if not word.startswith("--"):
        raise UserError(f"unexpected argument '{word}'")
    name = word[2:].replace("-", "_")
    if name in ORPOConfig.model_fields:
        flag = _flag(name)
        why = f"did you mean {flag}?" if flag != word else "this command does not take it"
        raise UserError(f"unknown flag '{word}': {why}")
    raise UserError(explain_unknown(name, ORPOConfig.model_fields, "flag", _flag))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# --- flags


def _train_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.config.flags import add_config_flags

    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file of settings; flags win over it"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the settings and stop")
    add_config_flags(parser)


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.evaluation.command import add_evaluate_flags

    add_evaluate_flags(parser)


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.generation.command import add_generate_flags

    add_generate_flags(parser)


def _ensemble_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.ensembles.command import add_verbs

    add_verbs(parser)


def _compare_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.compare.command import add_compare_flags

    add_compare_flags(parser)


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run folder, or the folder of a sweep")


def _data_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.audit.command import add_data_verbs

    add_data_verbs(parser)


def _launch_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.launch.flags import add_launch_flags

    add_launch_flags(parser)


def _slurm_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.launch.slurm_commands import add_verbs

    add_verbs(parser)


def _sweep_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.sweeps.command import add_sweep_flags

    add_sweep_flags(parser)


# --- commands


def _train(options: argparse.Namespace) -> int:
    from orpo_dist.config import dump_config, load_config
    from orpo_dist.config.flags import config_values

    config = load_config(options.config, config_values(options))
    if options.dry_run:
        print(dump_config(config), end="")
        return 0
    from orpo_dist import runtime
    from orpo_dist.interruption import Interrupted
    from orpo_dist.run import train

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


def _evaluate(options: argparse.Namespace) -> int:
    from orpo_dist.evaluation.command import run_evaluate

    return run_evaluate(options)


def _generate(options: argparse.Namespace) -> int:
    from orpo_dist.generation.command import run_generate

    return run_generate(options)


def _ensemble(options: argparse.Namespace) -> int:
    from orpo_dist.ensembles.command import run_verb

    return run_verb(options)


def _compare(options: argparse.Namespace) -> int:
    from orpo_dist.compare.command import run_compare

    return run_compare(options)


def _report(options: argparse.Namespace) -> int:
    folder = Path(options.run)
    if (folder / "sweep.yaml").exists():
        from orpo_dist.sweeps.page import write_page

        print(write_page(folder))
        return 0
    from orpo_dist.report import write_report

    print(write_report(folder))
    return 0


def _data(options: argparse.Namespace) -> int:
    from orpo_dist.audit.command import run_audit

    return run_audit(options)


def _launch(options: argparse.Namespace) -> int:
    from orpo_dist.launch.flags import launch

    return launch(options, _inner_config(options.inner))


def _inner_config(command: list[str]) -> ORPOConfig | None:
    """Check what shall be launched, so that mistakes are told once; the config, if it trains."""
    evaluates = command[:1] == ["evaluate"] or command[:2] == ["ensemble", "evaluate"]
    if command[:1] != ["train"] and not evaluates:
        raise UserError(
            "launch needs 'train ...' or 'evaluate ...' after --, e.g. "
            "'orpo-dist launch zero2 -- train --config run.yaml'"
        )
    parser = _Parser(prog=f"orpo-dist {command[0]}", allow_abbrev=False)
    _FLAGS[command[0]](parser)
    options, unknown = parser.parse_known_args(command[1:])
    _refuse_unknown(unknown)
    if evaluates:
        return None
    from orpo_dist.config import load_config
    from orpo_dist.config.flags import config_values

    return load_config(options.config, config_values(options))


def _slurm(options: argparse.Namespace) -> int:
    from orpo_dist.launch.slurm_commands import run_verb

    def config_of(line: Sequence[str]) -> ORPOConfig | None:
        return _inner_config(list(line)) if line[0] == "train" else None

    return run_verb(options, config_of)


def _sweep(options: argparse.Namespace) -> int:
    from orpo_dist.sweeps.command import run_sweep

    return run_sweep(options)


_FLAGS = {
    "train": _train_flags,
    "evaluate": _evaluate_flags,
    "generate": _generate_flags,
    "ensemble": _ensemble_flags,
    "compare": _compare_flags,
    "report": _report_flags,
    "data": _data_flags,
    "launch": _launch_flags,
    "sweep": _sweep_flags,
    "slurm": _slurm_flags,
}
_RUN = {
    "train": _train,
    "evaluate": _evaluate,
    "generate": _generate,
    "ensemble": _ensemble,
    "compare": _compare,
    "report": _report,
    "data": _data,
    "launch": _launch,
    "sweep": _sweep,
    "slurm": _slurm,
}
