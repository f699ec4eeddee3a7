"""The topology does not change the training: same curve, same weights, on every engine and split.

37 pairs in steps of 8 leave a last step of 5, so ranks meet steps with nothing to do, and 12 steps
pass two epochs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import DEMO
from tests.launching import ENGINES, assert_engine, curve, launched, run, training

RELATIVE = 1e-4
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def words(model: Path, folder: Path, data: Path, *flags: str) -> list[str]:
    return training(
        model, folder, "--data-path", str(data), "--max-steps", "12", "--valid-data-path",
        str(DEMO / "eval.jsonl"), "--eval-strategy", "steps", "--eval-steps", "6", *flags,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    lines = (DEMO / "train.jsonl").read_text(encoding="utf-8").splitlines()[:37]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, eight pairs at once; one pair at a time: test_normalisation.py."""
    folder = tmp_path_factory.mktemp("single")
    single = [sys.executable, "-m", "orpo_dist"]
    run(single + words(tiny_model_dir, folder, data, "--batch-size", "8"))
    assert_engine(folder, "single", 1)
    before = load_file(tiny_model_dir / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert max((after[name] - before[name]).abs().max() for name in before) > 5e-3  # it trained
    assert len(curve(folder)) == 12
    return folder


@pytest.mark.parametrize(
    ("launch", "engine", "flags"),
    [
        ([*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "--", "orpo_dist"], "ddp",
         ["--batch-size", "4"]),
        (launched("zero1"), "zero1", ["--batch-size", "2"]),
        (launched("zero2"), "zero2", ["--batch-size", "1", "--attention", "padded"]),
        ([*ACCELERATE, "--config_file", "launch/zero3.yaml", "--num_processes", "2",
          "-m", "orpo_dist"], "zero3", ["--batch-size", "2"]),
        (launched("zero3_offload"), "zero3", ["--batch-size", "4", "--gradient-checkpointing"]),
        (launched("fsdp2"), "fsdp2", ["--batch-size", "1"]),
        (launched("ddp"), "ddp", ["--attention", "padded", "--max-tokens-per-microbatch", "400"]),
    ],
    ids=["torchrun-ddp-1x4", "zero1-2x2", "zero2-4x1-padded", "accelerate-zero3-2x2",
         "zero3_offload-1x4", "fsdp2-4x1", "ddp-padded-budget"],
)  # fmt: skip
def test_same_curve_and_weights(
    launch: list[str],
    engine: str,
    flags: list[str],
    reference: Path,
    tiny_model_dir: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    run(launch + words(tiny_model_dir, tmp_path, data, *flags))
    assert_engine(tmp_path, engine, 1 if engine == "single" else 2)
    for metric in ("loss/orpo", "grad_norm", "logps/margins", "eval/loss", "eval/logps/chosen"):
        assert curve(tmp_path, metric) == pytest.approx(
            curve(reference, metric), rel=RELATIVE, abs=1e-5
        ), metric
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, reference))
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-4, rtol=0)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize("pairs", [1, 2, 4])
@pytest.mark.parametrize("engine", ["single", *ENGINES])
def test_every_engine_with_every_split(
    engine: str,
    pairs: int,
    attention: str,
    reference: Path,
    tiny_model_dir: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    flags = ["--batch-size", str(pairs), "--attention", attention]
    test_same_curve_and_weights(
        launched(engine), engine, flags, reference, tiny_model_dir, data, tmp_path
    )
