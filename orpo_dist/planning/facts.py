"""What is planned for: as stated in flags, else this machine, else assumed and said so."""

from __future__ import annotations

import argparse
import statistics

import psutil
import torch

from orpo_dist.base.types import UserError
from orpo_dist.engines.peaks import PEAKS, peak_of
from orpo_dist.planning.estimate import Machine
from orpo_dist.planning.speed import BETWEEN, CPU_FLOPS, MFU, USUAL, WITHIN, Rates
from orpo_dist.runs.folder import RunFolder, read_json, read_metrics


def machine_of(options: argparse.Namespace) -> Machine:
    """What to plan for: as stated, else this machine."""
    here = psutil.virtual_memory().total / 2**30
    gpus = torch.cuda.device_count() if options.gpus is None else options.gpus
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


def rates_of(options: argparse.Namespace, machine: Machine) -> Rates:
    """How fast it computes and sends: measured, stated, or assumed from its memory."""
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
    peak = peak_of(name)
    if peak is None:
        raise UserError(
            f"--gpu-type {name}: no data sheet is known for it; use one of {', '.join(PEAKS)}, or "
            "--tokens-per-second"
        )
    mfu = options.mfu or MFU
    source = f"{name} at {mfu:.0%} of {peak / 1e12:.0f} TFLOP/s{sends}, assumed"
    return Rates(mfu * peak, bandwidth, None, source)


def _measured(run: str) -> float:
    """Useful tokens a second and process of a finished run, the median of its log lines."""
    folder = RunFolder(run)
    lines = read_metrics(folder.path / "metrics.jsonl") if folder.path.is_dir() else []
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    if not rates:
        raise UserError(f"from-run {run}: no tokens_per_second in its metrics.jsonl")
    return statistics.median(rates) / int(read_json(folder.run).get("world_size", 1))
