"""Recomputed and compiled layers under every engine: the same steps, and weights by their names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.launch import presets
from orpo_dist.launch.argv import Topology, plan_launch
from tests.launching import TIMEOUT, finish, start

WORKER = Path(__file__).with_name("layers.py")

PLAIN: dict[str, Any] = {"kernels": "none"}
FORMS = [PLAIN | {"gradient_checkpointing": form} for form in ("every:2", "keep_attention", True)]
COMPILED: list[dict[str, Any]] = [
    {"kernels": "compile"},
    {"kernels": "compile", "gradient_checkpointing": "every:2", "sequence_parallel": 2},
]


def trained(engine: str, model: Path, folder: Path, cases: list[dict[str, Any]]) -> Any:
    plan = plan_launch(presets.find(engine), Topology(), 2, [])
    argv = plan.argv[: plan.argv.index("-m", 3)]
    assert argv[0] == sys.executable
    out = folder / "out.json"
    words = [*argv, str(WORKER), str(model), str(out), *map(json.dumps, cases)]
    code, _, errors = finish(start(words, **plan.environment), len(cases) * TIMEOUT)
    assert code == 0, errors
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "engine", ["ddp", pytest.param("zero2", marks=pytest.mark.slow), "zero3", "fsdp2"]
)
def test_the_same_steps_on_every_engine(engine: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    compiled = [] if engine == "zero3" else COMPILED
    plain, *others = trained(engine, tiny_model_dir, tmp_path, [PLAIN, *FORMS, *compiled])
    for number, found in enumerate(others):
        exact = number < len(FORMS)
        assert found["used"] == ([] if exact else ["compile"])
        assert found["names"] == plain["names"]  # none of a wrapper
        for name in ("loss", "norm"):
            assert found[name] == (plain[name] if exact else pytest.approx(plain[name], rel=1e-5))


def test_adapters_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    cases = [case | {"peft": True} for case in (PLAIN, *FORMS, *COMPILED)]
    plain, *others = trained("ddp", tiny_model_dir, tmp_path, cases)
    for found in others:
        assert found["names"] == plain["names"]
        for name in ("loss", "norm"):
            assert found[name] == pytest.approx(plain[name], rel=1e-5)
