"""``orpo-dist ensemble``: its verbs, their flags, and what they do."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orpo_dist.base.failure import rank_among_others
from orpo_dist.base.pages import output_path, write_output
from orpo_dist.base.types import UserError
from orpo_dist.evaluation.command import (
    add_data_flags,
    add_full_precision_flag,
    add_output_flags,
    checked_outputs,
    say_data,
    write_results,
)
from orpo_dist.generation.command import add_prompt_flags, prompts_of
from orpo_dist.generation.prompts import Prompt, prompt_lines, sampling_flags, sampling_options

logger = logging.getLogger("orpo_dist")

DECISIONS = ("average", "vote", "best_of")
SOUPS = ("uniform", "weighted", "greedy", "linear", "ties", "dare_linear", "dare_ties")


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """The verbs of ``orpo-dist ensemble``."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (text, flags, _) in VERBS.items():
        flags(verbs.add_parser(verb, help=text, description=text, allow_abbrev=False))


def run_verb(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    return VERBS[options.verb][2](options)


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
    sampling_flags(parser)


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    _member_flags(parser)
    parser.add_argument(
        "--method", nargs="+", choices=DECISIONS, default=list(DECISIONS), help="(default: all)"
    )
    _decision_flags(parser)
    add_output_flags(parser)
    add_data_flags(parser)


LOADING = ("mixed_precision", "trust_remote_code", "attention")  # of members, as flags


def _soup_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where to write the model")
    _member_flags(parser)
    parser.add_argument("--method", choices=SOUPS, default="uniform", help="(default: uniform)")
    parser.add_argument(
        "--density", type=float, default=0.5, help="share that ties and dare keep (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of what DARE drops (default: 42)")
    add_data_flags(parser, without=("mixed_precision", "trust_remote_code"))


def _create_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where to write ensemble.json")
    _member_flags(parser)


def _ensemble(
    options: argparse.Namespace,
    method: str,
    samples: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.ensembles.ensemble import load_ensemble

    quieten_libraries()
    return load_ensemble(
        options.members,
        method,  # type: ignore[arg-type]
        options.weights,
        options.average_of,
        options.criterion,
        samples,
        settings,
        options.full_precision,
    )


def _generate(options: argparse.Namespace) -> int:
    sampling = sampling_options(options)
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: is out of range")
    prompts = prompts_of(options)
    output = output_path("json", options.json) if options.json else None
    if options.method == "average" and (options.all or options.samples > 1):
        raise UserError("--all and --samples are for vote and best_of; average writes one answer")
    ensemble = _ensemble(options, options.method, options.samples)
    from transformers import set_seed

    set_seed(options.seed)
    rows: list[dict[str, Any]] = []
    for at in range(0, len(prompts), options.batch_size):
        for row in _answers(ensemble, prompts[at : at + options.batch_size], sampling):
            rows.append(row)
            _show(row, len(prompts) > 1, options.all)
    if output is not None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_output("json", output, "".join(lines))
    return 0


def _answers(
    ensemble: Any, prompts: list[Prompt], sampling: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row per prompt: its answer and, where there are any, all candidates."""
    if ensemble.method == "average":
        texts = ensemble.generate(prompts, **sampling)
        yield from ({"prompt": p, "answer": text} for p, text in zip(prompts, texts, strict=True))
        return
    for prompt, found in zip(prompts, ensemble.candidates(prompts, **sampling), strict=True):
        best = max(found, key=lambda candidate: candidate.score)
        yield {
            "prompt": prompt,
            "answer": best.text,
            "by": best.by,
            "candidates": [vars(candidate) for candidate in found],
        }


def _show(row: dict[str, Any], several: bool, every: bool) -> None:
    if several:
        print(f"\n> {prompt_lines(row['prompt'])}")
    if not every:
        print(row["answer"])
        return
    for candidate in sorted(row["candidates"], key=lambda c: -c["score"]):
        print(f"[{candidate['by']}, {candidate['score']:+.3f}]\n{candidate['text']}")


def _evaluate(options: argparse.Namespace) -> int:
    from orpo_dist.config import build_config
    from orpo_dist.config.flags import config_values

    values = config_values(options)
    build_config(values)
    if not values.get("data_path"):
        raise UserError("data_path is missing: pass --data-path FILE")
    outputs = checked_outputs(options)
    loading = {name: values[name] for name in LOADING if name in values}
    ensemble = _ensemble(options, options.method[0], settings=loading)
    from orpo_dist.base.device import mention_idle_gpus
    from orpo_dist.ensembles.evaluate import evaluate_ensemble

    mention_idle_gpus("ensemble evaluate")
    found = evaluate_ensemble(ensemble, values["data_path"], options.method, values)
    if rank_among_others():
        return 0
    from orpo_dist.evaluation.terminal import format_models

    say_data(found)
    print(format_models(found))
    write_results(outputs, found, found)
    return 0


def _soup(options: argparse.Namespace) -> int:
    from orpo_dist.config import build_config
    from orpo_dist.config.flags import config_values

    values = config_values(options)
    build_config(values)
    if options.weights is not None and options.method in ("uniform", "greedy"):
        raise UserError(f"--weights: {options.method} takes none; use weighted")
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.ensembles.listing import find_members
    from orpo_dist.ensembles.soups import accuracy_judge, make_soup

    quieten_libraries()
    paths = values.get("data_path", [])
    recipe = make_soup(
        find_members(options.members, options.weights),
        Path(options.folder).expanduser(),
        options.method,
        accuracy_judge(values, paths) if paths else None,
        options.density,
        options.seed,
    )
    for member in recipe["members"]:
        said = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in member.items() if key != "path")  # fmt: skip
        print(f"{member['path']}: {', '.join(said)}")
    print(options.folder)
    return 0


def _create(options: argparse.Namespace) -> int:
    from orpo_dist.ensembles.listing import FILE, find_members, write_listing

    members = find_members(options.members, options.weights)
    for member in members:
        if not Path(member.path).expanduser().is_dir():
            logger.warning("%s: no such folder; taken for a model on the hub", member.path)
    folder = Path(options.folder).expanduser()
    if (folder / FILE).exists():
        raise UserError(f"{folder / FILE}: exists already; choose another folder")
    print(write_listing(folder, members))
    return 0


Flags = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]


def _train_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.ensembles.train import add_train_flags

    add_train_flags(parser)


def _train(options: argparse.Namespace) -> int:
    from orpo_dist.ensembles.train import run_train

    return run_train(options)


VERBS: dict[str, tuple[str, Flags, Run]] = {
    "train": ("train members side by side, or take them from a sweep", _train_flags, _train),
    "generate": ("let members answer together", _generate_flags, _generate),
    "evaluate": ("members and what they make together, on pairs", _evaluate_flags, _evaluate),
    "soup": ("average the weights of members into one model", _soup_flags, _soup),
    "create": ("write an ensemble.json that names members", _create_flags, _create),
}
