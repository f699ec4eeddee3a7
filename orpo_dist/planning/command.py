"""``orpo-dist plan``: its flags, and what it prints."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orpo_dist.base.exits import EXIT_DOES_NOT_FIT
from orpo_dist.base.types import UserError


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.config.flags import add_config_flags

    parser.add_argument("--config", metavar="FILE", help="a YAML file of settings, as for train")
    for flag, kind, text in (
        ("--gpus", int, "over all machines; 0: plan for a CPU (default: those of this machine)"),
        ("--gpu-memory", float, "GiB of one GPU (default: this machine's)"),
        ("--gpus-per-node", int, "GPUs in one machine (default: 8)"),
        ("--host-memory", float, "GiB of one machine, for offloading and for CPUs"),
        ("--gpu-type", str, "e.g. H100: sets the rate of computing (default: by --gpu-memory)"),
        ("--mfu", float, "share of the GPU's bf16 peak that is reached (default: 0.4)"),
        ("--tokens-per-second", float, "measured instead: useful tokens a second and process"),
        ("--from-run", str, "take that rate from a run folder of the same model"),
        ("--bandwidth", float, "GB/s that one GPU sends (default: 150; 25 between machines)"),
        ("--pairs", int, "pairs in an epoch, where there is no data_path"),
        ("--json", str, "write every candidate with all its parts to this file"),
        ("--sbatch", str, "write a batch script for SLURM to this file"),
    ):
        parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=text)
    parser.add_argument(
        "--pair-tokens", type=int, nargs=3, metavar=("PROMPT", "CHOSEN", "REJECTED"),
        help="tokens of a typical pair, where there is no data_path",
    )  # fmt: skip
    parser.add_argument("--nvme", action="store_true", help="there is an NVMe disk to offload to")
    parser.add_argument("--all", action="store_true", help="list every method, not the best only")
    parser.add_argument("--asked-only", action="store_true", help="leave out the other methods")
    add_config_flags(parser)


def run_plan(options: argparse.Namespace) -> int:
    """0 if the method that is asked for fits, else ``EXIT_DOES_NOT_FIT``; ``UserError``."""
    from orpo_dist.config import load_config
    from orpo_dist.config.flags import config_values

    given = config_values(options)
    config = load_config(options.config, given)
    if config.model is None:
        raise UserError("nothing to plan: pass --model, or --config with a model")
    _check(options)
    from orpo_dist.base.console import quieten_libraries

    quieten_libraries()
    from orpo_dist.models.adapters import going_on
    from orpo_dist.models.model import load_model_config
    from orpo_dist.planning import data
    from orpo_dist.planning.estimate import Estimator
    from orpo_dist.planning.facts import machine_of, rates_of
    from orpo_dist.planning.plan import Planner, fastest
    from orpo_dist.planning.skeleton import method_of

    config = going_on(config)
    hf_config = load_model_config(str(config.model), config)
    machine = machine_of(options)
    if config.data_path and options.pair_tokens is None and options.pairs is None:
        known = data.read(config, hf_config)
    else:
        typical = tuple(options.pair_tokens) if options.pair_tokens else None
        known = data.stated(config, hf_config, typical, options.pairs)
    estimator = Estimator(hf_config, config, machine, known.longest, partial=True)
    planner = Planner(estimator, known, rates_of(options, machine), options.nvme)
    found = _candidates(planner, options.asked_only)
    best = fastest(found[method_of(config)])
    chosen = best or fastest([c for of_method in found.values() for c in of_method])
    _show(planner, found, best, chosen, options.all)
    if chosen is not None:
        _show_launch(planner, chosen, options, given)
    if options.json:
        _write("json", options.json, json.dumps(_as_json(found, chosen), indent=2) + "\n")
    return 0 if best else EXIT_DOES_NOT_FIT


def _show(planner: Any, found: Any, best: Any, chosen: Any, everything: bool) -> None:
    from orpo_dist.planning import terminal

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


def _show_launch(planner: Any, chosen: Any, options: argparse.Namespace, given: Any) -> None:
    from orpo_dist.planning import terminal
    from orpo_dist.planning.launching import launch_line, planned_script, train_words

    words = train_words(chosen, planner.config, options.config, given)
    print("\n" + launch_line(chosen, planner.machine, words))
    if options.sbatch:
        hours = terminal.hours(planner, chosen)
        _write("sbatch", options.sbatch, planned_script(chosen, planner.machine, words, hours))


def _candidates(planner: Any, asked_only: bool) -> dict[Any, list[Any]]:
    from tqdm import tqdm

    methods = planner.methods()[: 1 if asked_only else None]
    found: dict[Any, list[Any]] = {}
    for method in tqdm(methods, desc="tracing", unit="method", leave=False, disable=None):
        found[method] = list(planner.candidates(method))
    return found


def _check(options: argparse.Namespace) -> None:
    for name in (
        "gpu_memory", "gpus_per_node", "host_memory", "mfu", "tokens_per_second", "bandwidth",
        "pairs",
    ):  # fmt: skip
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be above 0")
    if options.gpus is not None and options.gpus < 0:
        raise UserError(f"--gpus {options.gpus}: must be 0 (plan for a CPU) or more")
    if options.mfu is not None and options.mfu > 1:
        raise UserError(f"--mfu {options.mfu:g}: is a share of the peak, at most 1")
    if options.pair_tokens and min(options.pair_tokens) < 1:
        raise UserError("--pair-tokens: prompt and answers need at least one token each")
    for name in ("json", "sbatch"):
        path = getattr(options, name)
        if path and not Path(path).resolve().parent.is_dir():
            raise UserError(f"{name} {path}: its folder does not exist")


def _as_json(found: dict[Any, list[Any]], chosen: Any) -> dict[str, Any]:
    def plain(candidate: Any) -> dict[str, Any]:
        return {
            **asdict(candidate),
            "method": str(candidate.method),
            "fits": candidate.fits,
            "seconds": candidate.time.seconds if candidate.time else None,
        }

    return {
        "chosen": plain(chosen) if chosen else None,
        "candidates": [plain(c) for of_method in found.values() for c in of_method],
    }


def _write(name: str, path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{name} {path}: cannot be written ({error.strerror})") from error
