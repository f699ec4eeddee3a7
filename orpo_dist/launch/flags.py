"""The flags of ``orpo-dist launch`` and ``orpo-dist env``."""

from __future__ import annotations

import argparse

from orpo_dist.launch import presets


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """The flags before ``--``; those not given are left out of the namespace."""
    parser.epilog = (
        "after --: train, evaluate or ensemble evaluate, e.g. -- train --config run.yaml"
    )
    parser.add_argument("preset", help=", ".join(presets.names()))
    for flag, kind, text in (
        ("--num-processes", int, "over all machines (default: one per GPU)"),
        ("--num-machines", int, "(default: 1)"),
        ("--machine-rank", int, "which machine this is, from 0"),
        ("--main-process-ip", str, "address of machine 0, the same on all machines"),
        ("--main-process-port", int, "port there (default: a free one; 29500 on several machines)"),
        ("--rdzv-id", str, "a name of this attempt, the same on all machines"),
        ("--patience", float, "seconds to wait for machine 0 (default: 300)"),
        ("--deepspeed-config", str, "a DeepSpeed file in place of the preset's"),
        ("--nvme-path", str, "folder on an NVMe disk, for zero3_nvme"),
    ):
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=text)
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and stop")


def add_env_flags(parser: argparse.ArgumentParser) -> None:
    """How it is written."""
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
