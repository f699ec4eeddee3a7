"""``orpo-dist ensemble``: what its verbs do."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import set_seed

from orpo_dist.base.console import quieten_libraries
from orpo_dist.base.device import mention_idle_gpus
from orpo_dist.base.failure import rank_among_others
from orpo_dist.base.pages import output_path, write_output
from orpo_dist.base.types import UserError
from orpo_dist.config.flags import config_values
from orpo_dist.ensembles.ensemble import load_ensemble
from orpo_dist.ensembles.evaluate import evaluate_ensemble
from orpo_dist.ensembles.listing import FILE, find_members, write_listing
from orpo_dist.ensembles.soups import accuracy_judge, make_soup
from orpo_dist.ensembles.train import run_train
from orpo_dist.evaluation.command import say_data, write_results
from orpo_dist.evaluation.flags import checked_outputs
from orpo_dist.evaluation.terminal import format_models
from orpo_dist.generation.command import prompts_of
from orpo_dist.generation.flags import sampling_options
from orpo_dist.generation.prompts import Prompt, prompt_lines

logger = logging.getLogger("orpo_dist")


def run_verb(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    return VERBS[options.verb](options)


LOADING = ("mixed_precision", "trust_remote_code", "attention")  # of members, as flags


def _ensemble(
    options: argparse.Namespace,
    method: str,
    samples: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Any:
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
    prompts = prompts_of(options)
    output = output_path("json", options.json) if options.json else None
    ensemble = _ensemble(options, options.method, options.samples)
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
    values = config_values(options)
    outputs = checked_outputs(options)
    loading = {name: values[name] for name in LOADING if name in values}
    ensemble = _ensemble(options, options.method[0], settings=loading)
    mention_idle_gpus("ensemble evaluate")
    found = evaluate_ensemble(ensemble, values["data_path"], options.method, values)
    if rank_among_others():
        return 0
    say_data(found)
    print(format_models(found))
    write_results(outputs, found, found)
    return 0


def _soup(options: argparse.Namespace) -> int:
    values = config_values(options)
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
    members = find_members(options.members, options.weights)
    for member in members:
        if not Path(member.path).expanduser().is_dir():
            logger.warning("%s: no such folder; taken for a model on the hub", member.path)
    folder = Path(options.folder).expanduser()
    if (folder / FILE).exists():
        raise UserError(f"{folder / FILE}: exists already; choose another folder")
    print(write_listing(folder, members))
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": run_train,
    "generate": _generate,
    "evaluate": _evaluate,
    "soup": _soup,
    "create": _create,
}
