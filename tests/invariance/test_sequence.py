"""Several ranks share each sequence, and nothing changes: the same curve, the same weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import DEMO
from tests.launching import assert_engine, curve, finish, launched, run, start, training

RELATIVE = 1e-5
METRICS = ("loss/orpo", "grad_norm", "logps/margins", "rewards/accuracies", "eval/loss")


def words(model: Path, folder: Path, *flags: str) -> list[str]:
    return training(
        model, folder, "--max-steps", "10", "--valid-data-path", str(DEMO / "eval.jsonl"),
        "--eval-strategy", "steps", "--eval-steps", "5", *flags,
    )  # fmt: skip


def on(preset: str, processes: int) -> list[str]:
    return launched(preset, "--num-processes", str(processes))


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    run([sys.executable, "-m", "orpo_dist", *words(tiny_model_dir, folder)])
    assert len(curve(folder)) == 10
    return folder


def assert_same(mine: Path, theirs: Path, bound: float = RELATIVE) -> None:
    for metric in METRICS:
        assert curve(mine, metric) == pytest.approx(
            curve(theirs, metric), rel=bound, abs=1e-6
        ), metric
    found, expected = (load_file(folder / "model.safetensors") for folder in (mine, theirs))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-5, name


@pytest.mark.parametrize(
    ("preset", "processes", "size", "flags"),
    [
        ("ddp", 2, 2, []),
        ("ddp", 4, 4, ["--gradient-checkpointing"]),
        ("ddp", 4, 2, ["--batch-size", "1"]),
        ("zero3", 2, 2, []),
        ("fsdp2", 2, 2, ["--gradient-checkpointing"]),
    ],
    ids=["ddp-2", "ddp-4", "ddp-2x2", "zero3-2", "fsdp2-2"],
)
def test_shared_sequences_train_alike(
    preset: str,
    processes: int,
    size: int,
    flags: list[str],
    reference: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    shared = ["--sequence-parallel", str(size)]
    errors = run([*on(preset, processes), *words(tiny_model_dir, tmp_path, *shared, *flags)])
    assert f"on {processes} processes, {size} to a sequence" in errors
    assert_engine(tmp_path, preset, processes)
    assert_same(tmp_path, reference)
