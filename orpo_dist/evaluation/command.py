"""``orpo-dist evaluate``: its flags, and where its results go."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from typing import Any

from orpo_dist.base.failure import rank_among_others
from orpo_dist.base.pages import output_path, write_output
from orpo_dist.base.types import UserError

logger = logging.getLogger("orpo_dist")


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="+", metavar="MODEL", help="run folders, model folders or hub ids"
    )
    add_output_flags(parser)
    parser.add_argument(
        "--text", nargs="+", default=[], metavar="FILE", help="text files to read for perplexity"
    )
    for flag, words in (
        ("--text-window", "tokens seen at once (default: the context, at most 1024)"),
        ("--text-stride", "tokens from one window to the next (default: half a window)"),
    ):
        parser.add_argument(flag, type=int, metavar="TOKENS", help=words)
    parser.add_argument(
        "--tasks", metavar="NAMES", help="standard tasks of lm-evaluation-harness, a comma list"
    )
    parser.add_argument("--tasks-path", metavar="FOLDER", help="further task definitions for it")
    parser.add_argument("--tasks-limit", type=int, metavar="N", help="examples per task")
    add_full_precision_flag(parser)
    add_data_flags(parser)


def add_full_precision_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--full-precision", action="store_true",
        help="load the base of an adapter unquantised, also where it was trained on int4 or int8",
    )  # fmt: skip


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--html", metavar="FILE", help="write one page with plots")


def add_data_flags(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """Which pairs, and how to read and score them."""
    from orpo_dist.config.flags import add_config_flags

    add_config_flags(
        parser,
        groups=("data",),
        also=("batch_size", "attention", "mixed_precision", "trust_remote_code",
              "max_tokens_per_microbatch"),
        without=("valid_data_path", "data_weights", "data_temperature", *without),
    )  # fmt: skip


def run_evaluate(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    from orpo_dist.config import build_config
    from orpo_dist.config.flags import config_values

    values = config_values(options)
    build_config(values)  # mistakes in flags, before anything is loaded
    outputs = checked_outputs(options)
    tasks = [name.strip() for name in (options.tasks or "").split(",") if name.strip()]
    if tasks:
        from orpo_dist.evaluation.harness import find_tasks

        find_tasks(tasks, options.tasks_path)
    if tasks and not (values.get("data_path") or options.text):
        found: dict[str, Any] = {"models": {name: {} for name in options.model}, "comparisons": []}
    else:
        found = _on_data(options, values)
    if tasks:
        _on_tasks(tasks, options, found)
    if rank_among_others():
        return 0
    from orpo_dist.evaluation.terminal import format_evaluation, format_models, format_tasks

    one = found["models"][options.model[0]]
    many = len(options.model) > 1
    print(format_models(found) if many else format_evaluation(one))
    if tasks:
        print(format_tasks(found))
    write_results(outputs, found if many else one, found)
    return 0


def _on_data(options: argparse.Namespace, values: Mapping[str, Any]) -> dict[str, Any]:
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.base.device import mention_idle_gpus
    from orpo_dist.evaluation.evaluate import evaluate_models
    from orpo_dist.evaluation.perplexity import TextSettings

    quieten_libraries()
    mention_idle_gpus("evaluate")
    texts = TextSettings(tuple(options.text), options.text_window, options.text_stride)
    found = evaluate_models(
        options.model,
        values.get("data_path", []),
        values,
        texts=texts,
        full_precision=options.full_precision,
    )
    if not rank_among_others():
        say_data(found)
    return found


def _on_tasks(tasks: list[str], options: argparse.Namespace, found: dict[str, Any]) -> None:
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.evaluation.harness import run_tasks
    from orpo_dist.models.trained import load, run_configs

    quieten_libraries()
    configs = run_configs(options.model)
    for model, config in zip(options.model, configs, strict=True):
        found["models"][model]["tasks"] = run_tasks(
            load(model, config, options.full_precision),
            tasks,
            options.tasks_path,
            options.tasks_limit,
        )


def checked_outputs(options: argparse.Namespace) -> dict[str, Any]:
    """Where ``--json`` and ``--html`` go."""
    outputs = {
        name: output_path(name, value)
        for name in ("json", "html")
        if (value := getattr(options, name)) is not None
    }
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise UserError("json and html name the same file; choose another for one of them")
    return outputs


def write_results(outputs: dict[str, Any], content: Any, found: dict[str, Any]) -> None:
    """content: for the JSON; found: for the page, as ``evaluate_models`` gives it."""
    if "json" in outputs:
        write_output("json", outputs["json"], json.dumps(content, indent=2) + "\n")
    if "html" in outputs:
        from orpo_dist.evaluation.page import evaluation_page

        write_output("html", outputs["html"], evaluation_page(found))


def say_data(found: Mapping[str, Any]) -> None:
    """What a person has to hear about the data, as ``evaluate_models`` has read them.

    Of a further model only what is not the same as of the first: its tokenizer cuts differently.
    """
    from orpo_dist.data.report import sentences

    said: list[str] = []
    for name, result in found["models"].items():
        report = result.get("data")
        if report is None:
            continue
        own = [sentence for _, sentence in sentences(report)]
        for sentence in own:
            if sentence not in said:
                logger.warning("%s: %s" if said else "%.0s%s", name, sentence)
        said = said or [*own, ""]
