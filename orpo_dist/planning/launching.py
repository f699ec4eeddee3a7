"""The chosen plan as a command line, and as a batch script for SLURM."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from orpo_dist.config import ORPOConfig
from orpo_dist.launch.batch import BatchJob, batch_script
from orpo_dist.planning.estimate import Machine
from orpo_dist.planning.plan import Candidate

SPARE = 1.5  # hours asked of SLURM beside the estimate's


def train_words(
    candidate: Candidate, config: ORPOConfig, file: str | None, given: Mapping[str, Any]
) -> list[str]:
    """``train …`` as the user gave it, and what the plan has decided.

    file: of ``--config``. given: settings from flags, as text.
    """
    decided: dict[str, Any] = {"peft": candidate.method.peft}
    decided["quantization"] = candidate.method.quantization
    decided["gradient_checkpointing"] = candidate.checkpointing
    if config.max_tokens_per_microbatch != "auto" and candidate.cut:  # auto finds it again
        decided["max_tokens_per_microbatch"] = candidate.tokens
    flags = dict(given)
    flags |= {name: value for name, value in decided.items() if getattr(config, name) != value}
    words = ["train"] + (["--config", file] if file else [])
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", *_texts(value)]
    return words


def _texts(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [{True: "true", False: "false", None: "none"}.get(value, str(value))]


def launch_line(candidate: Candidate, machine: Machine, words: list[str]) -> str:
    """As one would type it; RANK and FIRST stand for what differs by machine and by job."""
    if candidate.preset == "single":
        return shlex.join(["orpo-dist", *words])
    line = ["orpo-dist", "launch", candidate.preset, "--num-processes", str(machine.processes)]
    if machine.machines > 1:
        line += ["--num-machines", str(machine.machines), "--machine-rank", "RANK"]
        line += ["--main-process-ip", "FIRST"]
    if candidate.preset == "zero3_nvme":
        line += ["--nvme-path", "NVME_FOLDER"]
    return shlex.join([*line, "--", *words])


def planned_script(
    candidate: Candidate, machine: Machine, words: list[str], hours: float | None
) -> str:
    """The batch script with this plan's nodes, GPUs, preset, time and command."""
    limit = BatchJob.time if hours is None else f"{max(1, round(hours * 1.2 + SPARE))}:00:00"
    return batch_script(
        BatchJob(
            nodes=machine.machines,
            gpus_per_node=machine.here if machine.gpu else 0,
            preset=candidate.preset,
            launch="--nvme-path /nvme" if candidate.preset == "zero3_nvme" else "",
            command=shlex.join(words),
            time=limit,
        )
    )
