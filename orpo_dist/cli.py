"""The command line. Only argparse is imported until a command is known to run."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from orpo_dist.console import set_up_logging
from orpo_dist.exits import EXIT_CRASH, EXIT_INTERRUPTED, EXIT_USER_ERROR
from orpo_dist.failure import crash, rank_among_others, say
from orpo_dist.types import UserError

if TYPE_CHECKING:
    from orpo_dist.config import ORPOConfig

DESCRIPTION = "Fine-tune language models on preferences with ORPO: fast, exact, distributed."
COMMANDS = {
    "train": "train a model on a file of preferences",
    "evaluate": "preference accuracy, perplexity and margins of a model",
    "generate": "let a model answer prompts",
    "report": "write report.html of a run folder again",
    "data": "what is wrong with preference data: orpo-dist data audit FILE",
    "plan": "what a training will need and how to launch it, from config.json alone",
    "launch": "run a command on many processes: orpo-dist launch zero2 -- train ...",
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
    from orpo_dist.config.flags import add_config_flags

    parser.add_argument("model", help="a run folder, a model folder or a hub id")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    add_config_flags(
        parser,
        groups=("data",),
        also=("batch_size", "attention", "mixed_precision", "trust_remote_code"),
        without=("valid_data_path", "data_weights"),
    )


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run folder, a model folder or a hub id")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompts-file", metavar="FILE", help="a text file, one prompt a line")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=42)


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run folder")


def _data_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.audit.command import add_data_verbs

    add_data_verbs(parser)


def _plan_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.planning.command import add_plan_flags

    add_plan_flags(parser)


def _launch_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.launch.flags import add_launch_flags

    add_launch_flags(parser)


def _slurm_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.launch.slurm_commands import add_verbs

    add_verbs(parser)


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
    from orpo_dist.config import build_config
    from orpo_dist.config.flags import config_values

    values = config_values(options)
    if options.json and not Path(options.json).resolve().parent.is_dir():
        raise UserError(f"json {options.json}: its folder does not exist")
    from orpo_dist.console import quieten_libraries
    from orpo_dist.evaluation import evaluate_model, format_evaluation
    from orpo_dist.handle import run_config

    quieten_libraries()
    from_run = run_config(options.model)
    # data_path of the command replaces the run's, and with it what belonged to that
    inherited = {**from_run.model_dump(), "data_weights": None, "valid_split": None}
    config = build_config({**inherited, **values})
    result = evaluate_model(options.model, values.get("data_path", []), config)
    if rank_among_others():
        return 0
    _say_data(result["data"])
    print(format_evaluation(result))
    if options.json:
        try:
            Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"json {options.json}: cannot be written ({error.strerror})") from error
    return 0


def _say_data(report: dict[str, Any]) -> None:
    from orpo_dist.data.report import skip_sentence, truncation_sentences

    logger = logging.getLogger("orpo_dist")
    if sentence := skip_sentence(report):
        logger.warning(sentence)
    for _, sentence in truncation_sentences(report):
        logger.warning(sentence)


def _generate(options: argparse.Namespace) -> int:
    for flag, value, good in (
        ("--max-new-tokens", options.max_new_tokens, options.max_new_tokens >= 1),
        ("--temperature", options.temperature, options.temperature >= 0),
        ("--top-p", options.top_p, 0 < options.top_p <= 1),
        ("--seed", options.seed, options.seed >= 0),
    ):
        if not good:
            raise UserError(f"{flag} {value}: is out of range")
    prompts = list(options.prompt)
    if options.prompts_file:
        try:
            lines = Path(options.prompts_file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"prompts-file {options.prompts_file}: cannot be read ({error})"
            ) from error
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise UserError("nothing to answer: pass --prompt TEXT or --prompts-file FILE")
    from orpo_dist.console import quieten_libraries
    from orpo_dist.handle import load

    quieten_libraries()
    sampling: dict[str, Any] = {}
    if options.temperature > 0:
        from transformers import set_seed

        set_seed(options.seed)
        sampling = {
            "do_sample": True,
            "temperature": options.temperature,
            "top_p": options.top_p,
        }
    handle = load(options.model)
    for prompt in prompts:
        if len(prompts) > 1:
            print(f"\n> {prompt}")
        print(handle.generate(prompt, max_new_tokens=options.max_new_tokens, **sampling))
    return 0


def _report(options: argparse.Namespace) -> int:
    from orpo_dist.report import write_report

    print(write_report(Path(options.run)))
    return 0


def _data(options: argparse.Namespace) -> int:
    from orpo_dist.audit.command import run_audit

    return run_audit(options)


def _plan(options: argparse.Namespace) -> int:
    from orpo_dist.planning.command import run_plan

    return run_plan(options)


def _launch(options: argparse.Namespace) -> int:
    from orpo_dist.launch.flags import launch

    return launch(options, _inner_config(options.inner))


def _inner_config(command: list[str]) -> ORPOConfig | None:
    """Check what shall be launched, so that mistakes are told once; the config, if it trains."""
    if not command or command[0] not in ("train", "evaluate"):
        raise UserError(
            "launch needs 'train ...' or 'evaluate ...' after --, e.g. "
            "'orpo-dist launch zero2 -- train --config run.yaml'"
        )
    parser = _Parser(prog=f"orpo-dist {command[0]}", allow_abbrev=False)
    _FLAGS[command[0]](parser)
    options, unknown = parser.parse_known_args(command[1:])
    _refuse_unknown(unknown)
    if command[0] == "evaluate":
        return None
    from orpo_dist.config import load_config
    from orpo_dist.config.flags import config_values

    return load_config(options.config, config_values(options))


def _slurm(options: argparse.Namespace) -> int:
    from orpo_dist.launch.slurm_commands import run_verb

    def config_of(line: Sequence[str]) -> ORPOConfig | None:
        return _inner_config(list(line)) if line[0] == "train" else None

    return run_verb(options, config_of)


_FLAGS = {
    "train": _train_flags,
    "evaluate": _evaluate_flags,
    "generate": _generate_flags,
    "report": _report_flags,
    "data": _data_flags,
    "plan": _plan_flags,
    "launch": _launch_flags,
    "slurm": _slurm_flags,
}
_RUN = {
    "train": _train,
    "evaluate": _evaluate,
    "generate": _generate,
    "report": _report,
    "data": _data,
    "plan": _plan,
    "launch": _launch,
    "slurm": _slurm,
}
