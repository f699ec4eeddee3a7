"""``orpo-dist launch``: what it does with its flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields

from orpo_dist.base.types import UserError, noted, refuse
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


def run_launch(
    options: argparse.Namespace, config_of: Callable[[list[str]], ORPOConfig | None]
) -> int:
    """Returns the exit code; all mistakes, those in what is launched too, are one ``UserError``.

    config_of: checks a command line and gives the config of its training, None for any other.
    """
    found: list[str] = []
    config = None
    with noted(found):
        _find_preset(options)
    with noted(found):
        _refuse_others(options.inner)
        config = config_of(options.inner)
    refuse(found)
    return _launch(options, config)


def _refuse_others(line: list[str]) -> None:
    """``UserError`` for a command that is of one process."""
    if line[:1] not in (["train"], ["evaluate"]) and line[:2] != ["ensemble", "evaluate"]:
        raise UserError(
            "launch needs 'train ...' or 'evaluate ...' after --, e.g. "
            "'orpo-dist launch zero2 -- train --config run.yaml'"
        )


def _find_preset(options: argparse.Namespace) -> presets.Preset:
    """The preset that the flags name; ``UserError`` if there is none, or its file is wrong."""
    return presets.find(options.preset, vars(options).get("deepspeed_config"))


def _launch(options: argparse.Namespace, config: ORPOConfig | None) -> int:
    """Replace this process by ``accelerate launch``; with ``--dry-run`` print that command.

    config: of the training to launch, None for an evaluation. Raises ``UserError``.
    """
    given = vars(options)
    preset = _find_preset(options)
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
