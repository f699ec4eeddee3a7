"""Engines: which one a preset or a process's environment asks for. Imports no torch.

An engine is who owns weights, gradients and optimizer state: one process (``single``), everyone all
of it (``ddp``), DeepSpeed's shards (``zero1`` optimizer, ``zero2`` and gradients, ``zero3`` and
weights) or torch's own (``fsdp2``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError, refuse

SHARDED_WEIGHTS = ("zero3", "fsdp2")

WHOLE_GRADIENTS = 0.1  # of a device's memory: what FSDP2 may keep between micro-batches

# Settings of a DeepSpeed file that belong to the run, not to the topology: they must say "auto".
HYPERPARAMETERS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16.enabled",
    "fp16.enabled",
    "optimizer",
    "scheduler",
)


@dataclass(frozen=True)
class Engine:
    """name: single, ddp, zero1, zero2, zero3 or fsdp2. offload: none, cpu or nvme."""

    name: str
    offload: str = "none"

    @property
    def deepspeed(self) -> bool:
        return self.name.startswith("zero")

    @property
    def shards_weights(self) -> bool:
        """Whether no process holds the whole model."""
        return self.name in SHARDED_WEIGHTS

    def __str__(self) -> str:
        return self.name if self.offload == "none" else f"{self.name} with {self.offload} offload"


SINGLE = Engine("single")


def reduces_once(engine: Engine, trains: int, memory: float) -> bool:
    """Whether gradients are reduced once a step, or with every micro-batch.

    trains: parameters that train. memory: bytes of one device. FSDP2 can do either: to send
    gradients once, every rank keeps them whole, in fp32, until the last micro-batch.
    """
    if engine.name == "fsdp2":
        return 4 * trains <= WHOLE_GRADIENTS * memory
    return engine.name in ("single", "ddp", "zero1")


def engine_of(environment: Mapping[str, str]) -> Engine:
    """The engine that a launcher asked for through the variables of ``accelerate launch``.

    Raises ``UserError`` where they ask for something that does not exist here.
    """
    if _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        return deepspeed_engine(read_deepspeed(deepspeed_file(environment)))
    if _is_on(environment, "ACCELERATE_USE_FSDP"):
        if environment.get("FSDP_VERSION") != "2":
            raise UserError("FSDP version 1 is not supported: set fsdp_version to 2 (preset fsdp2)")
        offloads = _is_on(environment, "FSDP_OFFLOAD_PARAMS")
        return Engine("fsdp2", "cpu" if offloads else "none")
    return Engine("ddp" if int(environment.get("WORLD_SIZE", "1")) > 1 else "single")


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1", "yes")


def deepspeed_file(environment: Mapping[str, str]) -> Path:
    """The DeepSpeed file in the environment; ``UserError`` if there is none."""
    path = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        raise UserError(
            "DeepSpeed needs a deepspeed_config_file: launch with a preset, e.g. "
            "'orpo-dist launch zero2 -- train ...'"
        )
    return Path(path)


def read_deepspeed(path: Path) -> dict[str, Any]:
    """The settings in a DeepSpeed file; ``UserError`` if it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"DeepSpeed file {path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("zero_optimization"), dict):
        raise UserError(f"DeepSpeed file {path}: has no zero_optimization section")
    return content


def deepspeed_engine(settings: Mapping[str, Any]) -> Engine:
    """The engine that DeepSpeed settings describe."""
    zero = settings["zero_optimization"]
    stage = zero.get("stage")
    if stage not in (1, 2, 3):
        raise UserError(f"DeepSpeed file: zero_optimization.stage is {stage!r}; use 1, 2 or 3")
    devices = {
        (zero.get(part) or {}).get("device", "none")
        for part in ("offload_optimizer", "offload_param")
    }
    offload = next((device for device in ("nvme", "cpu") if device in devices), "none")
    return Engine(f"zero{stage}", offload)


def check_deepspeed(settings: Mapping[str, Any], path: Path, wanted: Engine | None = None) -> None:
    """``UserError`` where a DeepSpeed file sets what the run decides, or is not ``wanted``."""
    engine, found = deepspeed_engine(settings), []
    if wanted is not None and engine != wanted:
        found.append(f"says {engine}, but the preset is {wanted}; change one of them")
    for name in HYPERPARAMETERS:
        value: Any = settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value not in (None, "auto"):
            found.append(
                f'sets {name}, which is a setting of the run; write "auto" or leave it out'
            )
    refuse(found, f"DeepSpeed file {path}")
