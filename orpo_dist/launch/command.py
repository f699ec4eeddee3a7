"""``orpo-dist launch``: its flags, and what it does with them."""

from __future__ import annotations

import argparse
from dataclasses import fields

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.compatibility import refuse_impossible
from orpo_dist.launch import presets
from orpo_dist.launch.argv import (
    Topology,
    check_topology,
    meet_first_machine,
    plan_launch,
    processes_of,
)
from orpo_dist.runs.changes import check_changes


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


def find_preset(options: argparse.Namespace) -> presets.Preset:
    """The preset that the flags name; ``UserError`` if there is none, or its file is wrong."""
    return presets.find(options.preset, vars(options).get("deepspeed_config"))


def launch(options: argparse.Namespace, config: ORPOConfig | None) -> int:
    """Replace this process by ``accelerate launch``; with ``--dry-run`` print that command.

    config: of the training to launch, None for an evaluation. Raises ``UserError``.
    """
    given = vars(options)
    preset = find_preset(options)
    names = {field.name for field in fields(Topology)}
    topology = Topology(**{name: value for name, value in given.items() if name in names})
    check_topology(topology)
    processes = processes_of(preset, topology)
    if config is not None:
        refuse_impossible(config, preset.engine)
        check_changes(config, processes)
    elif preset.engine.name not in ("single", "ddp"):
        raise UserError(
            f"preset {preset.name}: evaluation shares out the data and not the model; use ddp"
        )
    plan = plan_launch(preset, topology, processes, options.inner, given.get("nvme_path"))
    if options.dry_run:
        print(plan)
        return 0
    meet_first_machine(topology)
    plan.run()
    return 0
