"""``orpo-dist plan``: named answers, the trace against real runs, and the arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orpo_dist.base.exits import EXIT_DOES_NOT_FIT
from tests.unit.planning.plans import MODELS, by_preset, plan, weights_of

GIB = 2**30


# --- the named answers


def test_7b_full_on_eight_gpus_of_80(capsys: Any, tmp_path: Path) -> None:
    printed, found = plan(
        capsys, tmp_path, "--model", str(MODELS / "llama-2-7b"), "--gpus", "8",
        "--gpu-memory", "80", "--max-completion-length", "512", "--pairs", "60000",
        "--asked-only",
    )  # fmt: skip
    chosen = found["chosen"]
    assert (chosen["method"], chosen["preset"]) == ("full", "zero1")
    candidates = by_preset(found, "full", True)
    assert not candidates["ddp"]["fits"]  # 16 B a parameter, and 4 for its buckets
    assert candidates["ddp"]["device_gib"] > 6.7e9 * 20 / GIB
    assert all(candidates[name]["fits"] for name in ("zero1", "zero2", "zero3", "fsdp2"))
    assert weights_of(chosen) == 2 * 6_738_415_616  # the parameters of Llama-2-7B
    assert "orpo-dist launch zero1 --num-processes 8 -- train" in printed
    assert "6.74B × 12 B / 8" in printed
    assert "1,407 steps" in printed  # 3 epochs of 60 000 pairs, 128 a step


def test_7b_qlora_on_one_gpu_of_24(capsys: Any, tmp_path: Path) -> None:
    words = ["--model", str(MODELS / "llama-2-7b"), "--gpus", "1", "--gpu-memory", "24"]
    words += ["--max-completion-length", "512"]
    words += ["--peft", "--quantization", "int4", "--gradient-checkpointing", "--asked-only"]
    printed, found = plan(capsys, tmp_path, *words)
    chosen = found["chosen"]
    assert (chosen["method"], chosen["preset"]) == ("LoRA int4", "single")
    # 32 layers of 4 × 4096² + 3 × 4096 × 11008 in 4.127 bits; embeddings and head in bf16
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert weights_of(chosen) / GIB == pytest.approx(
        (linear * 0.5159 + 2 * 32000 * 4096 * 2 + 40e6 * 4) / GIB, rel=0.01
    )
    assert "\norpo-dist train --model" in printed
    assert "--quantization int4" in printed


def test_70b_lora_on_eight_gpus_of_80(capsys: Any, tmp_path: Path) -> None:
    words = ["--model", str(MODELS / "llama-3-70b"), "--gpus", "8", "--gpu-memory", "80"]
    words += ["--max-completion-length", "512", "--gradient-checkpointing", "--asked-only"]
    _, found = plan(capsys, tmp_path, *words, "--peft")
    assert found["chosen"]["preset"] in ("fsdp2", "zero3")  # 141 GB of weights must be shared out
    candidates = by_preset(found, "LoRA", True)
    assert not any(candidates[name]["fits"] for name in ("ddp", "zero1", "zero2"))
    assert weights_of(found["chosen"]) / GIB == pytest.approx(70.55e9 * 2 / 8 / GIB, rel=0.02)
    _, found = plan(capsys, tmp_path, *words, "--peft", "--quantization", "int4")
    assert found["chosen"]["preset"] == "ddp"


def test_other_methods_are_listed_and_what_cannot_be_is_refused(
    capsys: Any, tmp_path: Path
) -> None:
    printed, found = plan(
        capsys, tmp_path, "--model", str(MODELS / "smollm2-135m"), "--gpus", "2",
        "--gpu-memory", "8", "--max-completion-length", "64", "--gradient-checkpointing", "--all",
    )  # fmt: skip
    refused = by_preset(found, "LoRA int8", True)["zero3"]
    assert "cannot shard int8" in refused["why_not"]
    assert not refused["fits"]
    assert {c["method"] for c in found["candidates"]} == {"full", "LoRA", "LoRA int8", "LoRA int4"}
    assert "other methods, each at its fastest:\n  LoRA       ddp" in printed


def test_135m_on_a_laptop(capsys: Any, tmp_path: Path) -> None:
    printed, found = plan(
        capsys, tmp_path, "--model", str(MODELS / "smollm2-135m"), "--gpus", "0",
        "--host-memory", "16", "--max-completion-length", "256", "--asked-only",
    )  # fmt: skip
    chosen = found["chosen"]
    assert (chosen["method"], chosen["preset"], chosen["checkpointing"]) == (
        "full",
        "single",
        False,
    )
    assert weights_of(chosen) == 4 * 134_515_008  # the parameters of SmolLM2-135M, fp32
    assert 2.5 < chosen["device_gib"] < 8
    assert "\norpo-dist train --model" in printed


def test_what_does_not_fit_ends_with_its_own_code(capsys: Any, tmp_path: Path) -> None:
    words = ["--model", str(MODELS / "llama-2-7b"), "--gpus", "1", "--max-completion-length", "64"]
    words += ["--gradient-checkpointing", "--batch-size", "1"]
    printed, found = plan(
        capsys, tmp_path, *words, "--gpu-memory", "24", "--host-memory", "64",
        code=EXIT_DOES_NOT_FIT,
    )  # fmt: skip
    assert "full training does not fit" in printed
    assert found["chosen"]["method"].startswith("LoRA")  # what would
    words += ["--host-memory", "64", "--asked-only", "--gpu-memory", "2"]
    printed, found = plan(capsys, tmp_path, *words, code=EXIT_DOES_NOT_FIT)
    assert found["chosen"] is None
    assert "orpo-dist train" not in printed
