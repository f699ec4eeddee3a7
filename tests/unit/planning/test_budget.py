"""Token budgets: sharded runs choose what was planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_dist.planning.estimate import Machine
from tests.unit.planning.plans import MODELS, plan


@pytest.mark.parametrize(
    ("model", "preset", "gpus", "memory", "flags"),
    [
        ("llama-2-7b", "zero3", 8, 80, []),
        ("llama-2-7b", "fsdp2", 8, 80, ["--gradient-checkpointing"]),
        ("llama-2-7b", "zero2", 2, 24, ["--peft", "--quantization", "int4"]),
    ],
)
def test_sharded_runs_choose_what_was_planned(
    model: str, preset: str, gpus: int, memory: float, flags: list[str], capsys: Any, tmp_path: Path
) -> None:
    """The budget of a run under ZeRO or FSDP is that of the plan, to the token."""
    from transformers import AutoConfig

    from orpo_dist import ORPOConfig
    from orpo_dist.batching.steps import StepPlan
    from orpo_dist.launch import presets
    from orpo_dist.planning.budget import _budget

    words = ["--model", str(MODELS / model), "--gpus", str(gpus), "--gpu-memory", str(memory)]
    words += ["--max-completion-length", "512", "--asked-only", *flags]
    _, found = plan(capsys, tmp_path, *words)
    candidate = next(
        c for c in found["candidates"]
        if c["preset"] == preset and c["checkpointing"] == ("--gradient-checkpointing" in flags)
    )  # fmt: skip
    config = ORPOConfig(
        peft="--peft" in flags,
        quantization="int4" if "int4" in flags else None,
        gradient_checkpointing="--gradient-checkpointing" in flags,
    )
    lengths = np.array([[128, 512, 512]] * 16 * gpus)
    step = StepPlan(lengths, lengths[:, 1], global_batch=16 * gpus, micro_batch=16, world_size=gpus)
    hf_config = AutoConfig.from_pretrained(MODELS / model)
    engine = presets.find(preset).engine
    assert _budget(hf_config, config, step, engine, Machine(gpus, memory)) == candidate["tokens"]
