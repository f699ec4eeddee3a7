"""A step that is no number on one rank is skipped on all, whatever the engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.launch import presets
from orpo_dist.launch.argv import Topology, plan_launch
from tests.distributed.broken import steps
from tests.launching import finish, start

WORKER = Path(__file__).with_name("broken.py")


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return steps(str(tiny_model_dir), tmp_path_factory.mktemp("alone") / "run", "scores")


@pytest.mark.parametrize(
    ("engine", "fault"),
    [("ddp", "loss"), ("zero2", "scores"), ("zero3", "gradient"), ("fsdp2", "loss"),
     pytest.param("zero1", "gradient", marks=pytest.mark.slow),
     pytest.param("fsdp2", "gradient", marks=pytest.mark.slow)],
)  # fmt: skip
def test_every_engine_goes_on_as_one_process_does(
    engine: str, fault: str, alone: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    plan = plan_launch(presets.find(engine), Topology(), 2, [])
    argv = plan.argv[: plan.argv.index("-m", 3)]
    assert argv[0] == sys.executable
    out = tmp_path / "out.json"
    words = [*argv, str(WORKER), str(tiny_model_dir), str(out), fault]
    code, _, errors = finish(start(words, **plan.environment))
    assert code == 0, errors
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["rate"] == pytest.approx(alone["rate"])
    for name in ("loss", "norm"):
        mine, one = ([n for n in curves[name] if n is not None] for curves in (found, alone))
        assert [n is None for n in found[name]] == [n is None for n in alone[name]]
        assert mine == pytest.approx(one, rel=2e-4)
    (count,), (skipped,) = alone["counts"], alone["skipped"]
    assert found["counts"] == [2 * count] == [2]
    assert [entry["step"] for entry in found["skipped"]] == [skipped["step"]]
    assert found["skipped"][0]["what"] == ("gradient" if fault == "gradient" else "loss")
    assert 13 in found["skipped"][0]["pairs"]
    assert len(found["skipped"][0]["pairs"]) <= {"scores": 1, "loss": 6, "gradient": 8}[fault]
    assert errors.count("skipped: its") == 1
