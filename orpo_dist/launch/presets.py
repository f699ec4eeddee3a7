"""Presets: accelerate's files of topology, shipped with the package and found by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import yaml

from orpo_dist.base.types import UserError
from orpo_dist.engines.engine import (
    SINGLE,
    Engine,
    check_deepspeed,
    deepspeed_engine,
    read_deepspeed,
)

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Preset:
    """A topology. path: accelerate's YAML; deepspeed: DeepSpeed's JSON, where there is one."""

    name: str
    path: Path
    engine: Engine
    deepspeed: Path | None = None


def names() -> list[str]:
    """All presets."""
    return sorted(path.stem for path in (FOLDER / "presets").glob("*.yaml"))


def find(name: str, deepspeed: str | None = None) -> Preset:
    """The preset of that name, with another DeepSpeed file in place of its own if one is given.

    Raises ``UserError`` for an unknown name, and for a file that is not what the preset says.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        guess = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(names())}"
        raise UserError(f"unknown preset '{name}': {guess}")
    path = FOLDER / "presets" / f"{name}.yaml"
    kind = yaml.safe_load(path.read_text(encoding="utf-8"))["distributed_type"]
    if kind == "DEEPSPEED":
        own = FOLDER / "ds_configs" / f"{name}.json"
        engine = deepspeed_engine(read_deepspeed(own))
        used = Path(deepspeed).resolve() if deepspeed else own
        check_deepspeed(read_deepspeed(used), used, engine)
        return Preset(name, path, engine, used)
    if deepspeed:
        raise UserError(f"deepspeed-config {deepspeed}: the preset {name} is not DeepSpeed")
    engines = {"NO": SINGLE, "MULTI_GPU": Engine("ddp"), "FSDP": Engine("fsdp2")}
    return Preset(name, path, engines[kind])
