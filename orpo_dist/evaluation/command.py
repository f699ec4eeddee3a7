"""``orpo-dist evaluate``: what it does, and where its results go."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_dist.base.console import quieten_libraries
from orpo_dist.base.device import mention_idle_gpus
from orpo_dist.base.failure import rank_among_others
from orpo_dist.base.pages import write_output
from orpo_dist.config.flags import config_values
from orpo_dist.data.report import sentences
from orpo_dist.engines import runtime
from orpo_dist.evaluation.evaluate import evaluate_models
from orpo_dist.evaluation.flags import checked_outputs
from orpo_dist.evaluation.harness import find_tasks, run_tasks
from orpo_dist.evaluation.page import evaluation_page
from orpo_dist.evaluation.perplexity import TextSettings
from orpo_dist.evaluation.terminal import format_evaluation, format_models, format_tasks
from orpo_dist.models.trained import load, run_configs

logger = logging.getLogger("orpo_dist")


def run_evaluate(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    values = config_values(options)
    outputs = checked_outputs(options)
    tasks = [name.strip() for name in (options.tasks or "").split(",") if name.strip()]
    if tasks:
        find_tasks(tasks, options.tasks_path, runtime.start())
    if tasks and not (values.get("data_path") or options.text):
        found: dict[str, Any] = {"models": {name: {} for name in options.model}, "comparisons": []}
    else:
        found = _on_data(options, values)
    if tasks:
        _on_tasks(tasks, options, found)
    if rank_among_others():
        return 0
    one = found["models"][options.model[0]]
    many = len(options.model) > 1
    print(format_models(found) if many else format_evaluation(one))
    if tasks:
        print(format_tasks(found))
    write_results(outputs, found if many else one, found)
    return 0


def _on_data(options: argparse.Namespace, values: Mapping[str, Any]) -> dict[str, Any]:
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
    quieten_libraries()
    configs = run_configs(options.model)
    for model, config in zip(options.model, configs, strict=True):
        found["models"][model]["tasks"] = run_tasks(
            load(model, config, options.full_precision),
            tasks,
            options.tasks_path,
            options.tasks_limit,
        )


def write_results(outputs: dict[str, Path], content: Any, found: dict[str, Any]) -> None:
    """content: for the JSON; found: for the page, as ``evaluate_models`` gives it."""
    if "json" in outputs:
        write_output("json", outputs["json"], json.dumps(content, indent=2) + "\n")
    if "html" in outputs:
        write_output("html", outputs["html"], evaluation_page(found))


def say_data(found: Mapping[str, Any]) -> None:
    """What a person has to hear about the data, as ``evaluate_models`` has read them.

    Of a further model only what is not the same as of the first: its tokenizer cuts differently.
    """
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
