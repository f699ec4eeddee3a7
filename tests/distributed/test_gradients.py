"""Where gradients lie between micro-batches, and that it does not change the training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.engines.engine import WHOLE_GRADIENTS, Engine, reduces_once
from orpo_dist.launch import presets
from orpo_dist.launch.argv import Topology, plan_launch
from tests.launching import TIMEOUT, finish, start

WORKER = Path(__file__).with_name("gradients.py")


def watched(engine: str, model: Path, folder: Path, *cases: tuple[float, int]) -> tuple[Any, str]:
    """What gradients.py wrote of each (share, pairs) on two ranks, and their log."""
    plan = plan_launch(presets.find(engine), Topology(), 2, [])
    argv = plan.argv[: plan.argv.index("-m", 3)]
    assert argv[0] == sys.executable
    out = folder / "out.json"
    words = [*argv, str(WORKER), str(model), str(out), *(f"{s}:{pairs}" for s, pairs in cases)]
    code, _, errors = finish(start(words, **plan.environment), len(cases) * TIMEOUT)
    assert code == 0, errors
    return json.loads(out.read_text(encoding="utf-8")), errors


def test_fsdp2_reduces_once_or_every_time(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Four micro-batches a step, three in the last: the same steps from half the gradients."""
    cases = (WHOLE_GRADIENTS, 1), (0.0, 1)
    (whole, cut), said = watched("fsdp2", tiny_model_dir, tmp_path, *cases)
    numbers = sum(whole["trains"])
    assert max(whole["held"]) == numbers
    assert max(cut["held"]) == pytest.approx(numbers / 2, rel=0.01)
    for name in ("loss", "norm"):
        assert cut[name] == pytest.approx(whole[name], rel=1e-5)
    assert said.count("reduces gradients with every micro-batch") == 1  # of the second


def test_ddp_keeps_gradients_in_its_buckets(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Few storages for many gradients when the optimizer steps; with accumulation as well."""
    (one, many), _ = watched("ddp", tiny_model_dir, tmp_path, (1.0, 4), (1.0, 1))
    for found in (one, many):
        assert max(found["storages"]) <= 2 < len(found["trains"])
    assert set(one["held"]) == {0} and max(many["held"]) == sum(many["trains"])
    for name in ("loss", "norm"):
        assert many[name] == pytest.approx(one[name], rel=1e-5)


def test_what_may_wait_whole() -> None:
    """fp32 gradients up to a tenth of the device."""
    fsdp2, memory = Engine("fsdp2"), 80 * 2**30
    assert reduces_once(fsdp2, int(2.1e9), memory)
    assert not reduces_once(fsdp2, int(2.2e9), memory)
    for name, once in (("single", True), ("ddp", True), ("zero1", True), ("zero2", False)):
        assert reduces_once(Engine(name), int(1e12), memory) == once
