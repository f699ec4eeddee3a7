"""Stages, curriculum and category metrics do not depend on engine and number of processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from orpo_dist.runs.folder import read_metrics
from tests.launching import assert_engine, launched, run, training
from tests.unit.data.test_mixing import sorted_by_task

STAGES = [
    {"orpo_alpha": 0, "max_steps": 3},
    {
        "curriculum": "margin", "orpo_alpha_schedule": "ramp", "max_steps": 4, "lr": 3e-3,
        "weight_decay": 0.1, "max_grad_norm": 0.5,
    },
]  # fmt: skip


def staged(launch: list[str], model: Path, folder: Path, data: Path, *flags: str) -> None:
    stages = ["--stages", json.dumps(STAGES), "--data-path", str(data)]
    run(launch + training(model, folder, *stages, *flags))


@pytest.fixture(scope="module")
def data(demo_rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in sorted_by_task(demo_rows[:37])))
    return path


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    staged([sys.executable, "-m", "orpo_dist"], tiny_model_dir, folder, data)
    return folder


@pytest.mark.parametrize(
    "engine",
    [
        "zero2",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ddp", "zero1", "zero3", "fsdp2")
        ),
    ],
)
def test_a_staged_run_is_the_same_on_every_engine(
    engine: str, reference: Path, tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    """Two stages with different optimizers' settings, in one process group."""
    staged(launched(engine), tiny_model_dir, tmp_path, data)
    assert_engine(tmp_path, engine, 2)
    found, expected = (read_metrics(f / "metrics.jsonl") for f in (tmp_path, reference))
    assert [e["step"] for e in found] == list(range(1, 8))
    for mine, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            if name.startswith(("loss", "logps", "pairs/", "stage", "orpo_alpha", "learning_rate")):
                assert mine[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, mine["step"])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_adapters_pass_from_stage_to_stage_where_weights_are_sharded(
    engine: str, tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    single = [sys.executable, "-m", "orpo_dist"]
    for launch, name in ((single, "single"), (launched(engine), engine)):
        staged(launch, tiny_model_dir, tmp_path / name, data, "--peft")
    curves = [
        [e["loss/orpo"] for e in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("single", engine)
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
