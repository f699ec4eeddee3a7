"""The verbs of ``orpo-dist ensemble`` and their flags, checked before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from orpo_dist.base.pages import output_path
from orpo_dist.base.types import UserError
from orpo_dist.config import build_config
from orpo_dist.config.flags import config_values
from orpo_dist.ensembles.listing import FILE
from orpo_dist.evaluation.flags import add_data_flags, add_output_flags, checked_outputs
from orpo_dist.generation.flags import add_prompt_flags, add_sampling_flags, sampling_options
from orpo_dist.models.flags import add_full_precision_flag
from orpo_dist.sweeps.flags import add_sweep_settings, check_sweep
from orpo_dist.sweeps.searched.files import shipped

DECISIONS = ("average", "vote", "best_of")
SOUPS = ("uniform", "weighted", "greedy", "linear", "ties", "dare_linear", "dare_ties")


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """The verbs of ``orpo-dist ensemble``."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (text, flags) in VERBS.items():
        flags(verbs.add_parser(verb, help=text, description=text, allow_abbrev=False))


def _member_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "members", nargs="+", metavar="MEMBER",
        help="models (run folders, adapters, hub ids), or one folder with an ensemble.json",
    )  # fmt: skip
    parser.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="one per member (default: all alike)"
    )


def _decision_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--average-of", choices=("probabilities", "logits"), default="probabilities",
        help="what average averages (default: probabilities)",
    )  # fmt: skip
    parser.add_argument(
        "--criterion", choices=("logp", "odds"), default="logp",
        help="what vote and best_of go by: mean log-prob (default), or log odds over the others",
    )  # fmt: skip
    add_full_precision_flag(parser)


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    _member_flags(parser)
    parser.add_argument("--method", choices=DECISIONS, default="average", help="(default: average)")
    _decision_flags(parser)
    parser.add_argument(
        "--samples", type=int, default=1, help="answers of each member for vote and best_of"
    )
    parser.add_argument("--all", action="store_true", help="show every answer with its score")
    add_prompt_flags(parser)
    parser.add_argument("--batch-size", type=int, default=8, help="prompts at once (default: 8)")
    parser.add_argument("--json", metavar="FILE", help="write prompts and answers, one row a line")
    add_sampling_flags(parser)
    parser.set_defaults(check=check_generate)


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    _member_flags(parser)
    parser.add_argument(
        "--method", nargs="+", choices=DECISIONS, default=list(DECISIONS), help="(default: all)"
    )
    _decision_flags(parser)
    add_output_flags(parser)
    add_data_flags(parser)
    parser.set_defaults(check=check_evaluate)


def _soup_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where to write the model")
    _member_flags(parser)
    parser.add_argument("--method", choices=SOUPS, default="uniform", help="(default: uniform)")
    parser.add_argument(
        "--density", type=float, default=0.5, help="share that ties and dare keep (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of what DARE drops (default: 42)")
    add_data_flags(parser, without=("mixed_precision", "trust_remote_code"))
    parser.set_defaults(check=check_soup)


def _create_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where to write ensemble.json")
    _member_flags(parser)


def _train_flags(parser: argparse.ArgumentParser) -> None:
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
    parser.set_defaults(check=check_train)


def check_generate(options: argparse.Namespace) -> None:
    """``UserError`` for mistakes, before anything is loaded; so do all of these."""
    sampling_options(options)
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: is out of range")
    if options.json:
        output_path("json", options.json)
    if options.method == "average" and (options.all or options.samples > 1):
        raise UserError("--all and --samples are for vote and best_of; average writes one answer")


def check_evaluate(options: argparse.Namespace) -> None:
    values = config_values(options)
    build_config(values)
    if not values.get("data_path"):
        raise UserError("data_path is missing: pass --data-path FILE")
    checked_outputs(options)


def check_soup(options: argparse.Namespace) -> None:
    build_config(config_values(options))
    if options.weights is not None and options.method in ("uniform", "greedy"):
        raise UserError(f"--weights: {options.method} takes none; use weighted")


def check_train(options: argparse.Namespace) -> int | None:
    """0 after a dry run."""
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
        return None
    return check_sweep(options)


def _refuse_training_flags(options: argparse.Namespace) -> None:
    given = [
        key.partition(".")[2] for key in vars(options) if key.startswith(("config.", "sweep."))
    ]
    given += [name for name in ("dry_run", "resume", "retry_failed") if getattr(options, name)]
    given += ["rounds"] if options.rounds != 1 else []
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise UserError(f"{flag}: with --from-sweep nothing is trained; leave it out")


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": ("train members side by side, or take them from a sweep", _train_flags),
    "generate": ("let members answer together", _generate_flags),
    "evaluate": ("members and what they make together, on pairs", _evaluate_flags),
    "soup": ("average the weights of members into one model", _soup_flags),
    "create": ("write an ensemble.json that names members", _create_flags),
}
