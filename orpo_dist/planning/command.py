"""``orpo-dist plan``: its flags, and what it prints."""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orpo_dist.exits import EXIT_DOES_NOT_FIT
from orpo_dist.types import UserError


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
    parser.add_argument("--all", action="store_true", help="list every method, not the best only")
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
    from orpo_dist.console import quieten_libraries

    quieten_libraries()
    from orpo_dist.model import load_model_config
    from orpo_dist.planning import data, text
    from orpo_dist.planning.estimate import Estimator
    from orpo_dist.planning.launching import batch_script, launch_line, train_words
    from orpo_dist.planning.plan import Planner, fastest
    from orpo_dist.planning.skeleton import method_of

    hf_config = load_model_config(config.model, config)
    machine = _machine(options)
    if config.data_path and options.pair_tokens is None and options.pairs is None:
        known = data.read(config, hf_config)
    else:
        typical = tuple(options.pair_tokens) if options.pair_tokens else None
        known = data.stated(config, hf_config, typical, options.pairs)
    estimator = Estimator(hf_config, config, machine, known.longest)
    planner = Planner(estimator, known, _rates(options, machine))
    found = _all_candidates(planner)
    asked = method_of(config)
    best = fastest(found[asked])
    print(text.heading(planner))
    shown = [c for of_method in found.values() for c in of_method] if options.all else found[asked]
    print("\n" + text.table(shown))
    chosen = best or fastest([c for of_method in found.values() for c in of_method])
    if best is None:
        closest = min((c for c in found[asked] if c.parts), key=lambda c: c.device_gib)
        print(f"\n{asked} training does not fit; the closest is {closest.preset}:")
        print(text.arithmetic(closest, machine.memory))
    if chosen is not None:
        word = "fastest that fits" if best else "what would fit"
        checkpointing = ", gradient checkpointing" if chosen.checkpointing else ""
        print(f"\n{word}: {chosen.method}, {chosen.preset}{checkpointing}")
        print(text.arithmetic(chosen, machine.memory))
        print(text.budget(planner, chosen))
        print(text.timing(planner, chosen))
    print("\nother methods, each at its fastest:\n" + text.others(found, asked))
    if chosen is not None:
        words = train_words(chosen, config, options.config, given)
        print("\n" + launch_line(chosen, machine, words))
        if options.sbatch:
            hours = text.hours(planner, chosen)
            _write("sbatch", options.sbatch, batch_script(chosen, machine, words, hours))
    if options.json:
        _write("json", options.json, json.dumps(_as_json(found, chosen), indent=2) + "\n")
    return 0 if best else EXIT_DOES_NOT_FIT


def _all_candidates(planner: Any) -> dict[Any, list[Any]]:
    from tqdm import tqdm

    found: dict[Any, list[Any]] = {}
    for method in tqdm(planner.methods(), desc="tracing", unit="method", leave=False):
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


def _machine(options: argparse.Namespace) -> Any:
    """What to plan for: as stated, else this machine."""
    import psutil
    import torch

    from orpo_dist.launch.machine import visible_gpus
    from orpo_dist.planning.estimate import Machine

    here = psutil.virtual_memory().total / 2**30
    gpus = visible_gpus() if options.gpus is None else options.gpus
    if not gpus:
        if options.gpu_memory is not None:
            raise UserError("--gpu-memory: say how many GPUs too, with --gpus")
        return Machine(1, options.host_memory or here, gpu=False)
    memory = options.gpu_memory
    if memory is None:
        if not torch.cuda.is_available():
            raise UserError("--gpu-memory is missing: this machine has no GPU to ask")
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    host = options.host_memory or (here if options.gpus is None else None)
    return Machine(gpus, memory, host, options.gpus_per_node or 8)


def _rates(options: argparse.Namespace, machine: Any) -> Any:
    from orpo_dist.planning.speed import BETWEEN, CPU_FLOPS, MFU, USUAL, WITHIN, Rates
    from orpo_dist.throughput import PEAKS

    bandwidth = options.bandwidth or (BETWEEN if machine.machines > 1 else WITHIN)
    sends = f", {bandwidth:g} GB/s" if machine.processes > 1 else ""
    if options.tokens_per_second is not None:
        tokens = options.tokens_per_second
        return Rates(0.0, bandwidth, tokens, f"{tokens:g} tokens/s a process, as stated{sends}")
    if options.from_run is not None:
        tokens = _measured(options.from_run)
        source = f"{tokens:.0f} tokens/s a process, measured in {options.from_run}{sends}"
        return Rates(0.0, bandwidth, tokens, source)
    if not machine.gpu:
        return Rates(CPU_FLOPS, bandwidth, None, f"{CPU_FLOPS / 1e9:.0f} GFLOP/s, assumed")
    name = options.gpu_type or USUAL[min(USUAL, key=lambda size: abs(size - machine.memory))]
    if name not in PEAKS:
        raise UserError(
            f"--gpu-type {name}: no data sheet is known for it; use one of {', '.join(PEAKS)}, or "
            "--tokens-per-second"
        )
    mfu = options.mfu or MFU
    source = f"{name} at {mfu:.0%} of {PEAKS[name] / 1e12:.0f} TFLOP/s{sends}, assumed"
    return Rates(mfu * PEAKS[name], bandwidth, None, source)


def _measured(run: str) -> float:
    """Useful tokens a second and process of a finished run, the median of its log lines."""
    from orpo_dist.folder import RunFolder, read_json, read_metrics

    folder = RunFolder(run)
    lines = read_metrics(folder.path / "metrics.jsonl") if folder.path.is_dir() else []
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    if not rates:
        raise UserError(f"from-run {run}: no tokens_per_second in its metrics.jsonl")
    return statistics.median(rates) / int(read_json(folder.run).get("world_size", 1))


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
