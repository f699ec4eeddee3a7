"""``orpo-dist plan``: what it prints."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from orpo_dist.base.console import quieten_libraries
from orpo_dist.base.exits import EXIT_DOES_NOT_FIT
from orpo_dist.base.types import UserError
from orpo_dist.config.flags import config_of, config_values
from orpo_dist.models.adapters import going_on
from orpo_dist.models.model import load_model_config
from orpo_dist.planning import data, terminal
from orpo_dist.planning.estimate import Estimator
from orpo_dist.planning.facts import machine_of, rates_of
from orpo_dist.planning.launching import launch_line, planned_script, train_words
from orpo_dist.planning.plan import Planner, fastest
from orpo_dist.planning.sharing import sizes
from orpo_dist.planning.skeleton import method_of


def run_plan(options: argparse.Namespace) -> int:
    """0 if the method that is asked for fits, else ``EXIT_DOES_NOT_FIT``; ``UserError``."""
    quieten_libraries()
    config = going_on(config_of(options))
    hf_config = load_model_config(str(config.model), config)
    machine = machine_of(options)
    if config.data_path and options.pair_tokens is None and options.pairs is None:
        known = data.read(config, hf_config)
    else:
        typical = tuple(options.pair_tokens) if options.pair_tokens else None
        known = data.stated(config, hf_config, typical, options.pairs)
    estimator = Estimator(hf_config, config, machine, known.longest, partial=True)
    rates = rates_of(options, machine)
    for size in sizes(config, machine.processes):
        planner = Planner(estimator.over(size), known, rates, options.nvme)
        found = _candidates(planner, options.asked_only)
        if best := fastest(found[method_of(config)]):
            break
    chosen = best or fastest([c for of_method in found.values() for c in of_method])
    _show(planner, found, best, chosen, options.all)
    if chosen is not None:
        _show_launch(planner, chosen, options)
    if options.json:
        _write("json", options.json, json.dumps(_as_json(planner, found, chosen), indent=2) + "\n")
    return 0 if best else EXIT_DOES_NOT_FIT


def _show(planner: Any, found: Any, best: Any, chosen: Any, everything: bool) -> None:
    asked = planner.methods()[0]
    memory = planner.machine.memory
    shown = [c for of_method in found.values() for c in of_method] if everything else found[asked]
    print(terminal.heading(planner))
    print("\n" + terminal.table(shown))
    if best is None:
        closest = terminal.closest(found[asked])
        print(f"\n{asked} training does not fit" + (f"; closest, {closest}" if closest else ""))
    if chosen is not None:
        word = "fastest that fits" if best else "what would fit"
        print(f"\n{word}: {terminal.name_of(chosen)}")
        print(terminal.arithmetic(chosen, memory))
        print(terminal.budget(planner, chosen))
        print(terminal.timing(planner, chosen))
    if len(found) > 1:
        print("\nother methods, each at its fastest:\n" + terminal.others(found, asked))


def _show_launch(planner: Any, chosen: Any, options: argparse.Namespace) -> None:
    words = train_words(chosen, planner.config, options.config, config_values(options))
    print("\n" + launch_line(chosen, planner.machine, words))
    if options.sbatch:
        hours = terminal.hours(planner, chosen)
        _write("sbatch", options.sbatch, planned_script(chosen, planner.machine, words, hours))


def _candidates(planner: Any, asked_only: bool) -> dict[Any, list[Any]]:
    methods = planner.methods()[: 1 if asked_only else None]
    found: dict[Any, list[Any]] = {}
    for method in tqdm(methods, desc="tracing", unit="method", leave=False, disable=None):
        found[method] = list(planner.candidates(method))
    return found


def _as_json(planner: Any, found: dict[Any, list[Any]], chosen: Any) -> dict[str, Any]:
    def plain(candidate: Any) -> dict[str, Any]:
        return {
            **asdict(candidate),
            "method": str(candidate.method),
            "fits": candidate.fits,
            "seconds": candidate.time.seconds if candidate.time else None,
        }

    return {
        "sequence_parallel": planner.config.ranks_per_sequence,
        "chosen": plain(chosen) if chosen else None,
        "candidates": [plain(c) for of_method in found.values() for c in of_method],
    }


def _write(name: str, path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{name} {path}: cannot be written ({error.strerror})") from error
