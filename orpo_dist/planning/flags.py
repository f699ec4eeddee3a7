"""The flags of ``orpo-dist plan``, and what is said of them before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from orpo_dist.base.types import UserError
from orpo_dist.config.flags import add_config_flags, config_of


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """What is planned, on which machines, and what to write."""
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
    parser.set_defaults(check=check_plan)


def check_plan(options: argparse.Namespace) -> None:
    """``UserError`` for mistakes, before anything is loaded."""
    if config_of(options).model is None:
        raise UserError("nothing to plan: pass --model, or --config with a model")
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
