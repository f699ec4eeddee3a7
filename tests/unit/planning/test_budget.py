"""Token budgets: sharded runs choose what was planned."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

from orpo_dist import ORPOConfig
from orpo_dist.batching.steps import StepPlan
from orpo_dist.launch import presets
from orpo_dist.models.recomputing import FORMS, Form
from orpo_dist.planning.budget import _budget, _form
from orpo_dist.planning.estimate import Estimator, Machine, device_gib, host_gib
from tests.unit.planning.plans import MODELS, plan

MEMORIES = (24, 50)  # GiB


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


def test_the_fastest_form_that_fits(caplog: pytest.LogCaptureFixture) -> None:
    """A LoRA of 7B: the more memory, the less is computed again; 8 pairs or more fit each time."""
    caplog.set_level(logging.INFO, "orpo_dist")
    lengths = np.array([[128, 512, 512]] * 16)
    step = StepPlan(lengths, lengths[:, 1], global_batch=16, micro_batch=16, world_size=1)
    hf_config = AutoConfig.from_pretrained(MODELS / "llama-2-7b")
    config = ORPOConfig(peft=True, gradient_checkpointing="auto")
    single = presets.find("single").engine

    def chosen(memory: float) -> Form:
        return _form(hf_config, config, step, single, Machine(1, memory), FORMS)

    found = [chosen(memory) for memory in MEMORIES]
    assert found == ["keep_attention", "every:2"]
    assert "auto: every:2, by the arithmetic of 'orpo-dist plan' (tokens" in caplog.text


def test_layer_inputs_on_the_host() -> None:
    """32 layers of 9,216 tokens of 4,096 bf16 numbers leave the device, and are on the host."""
    hf_config = AutoConfig.from_pretrained(MODELS / "llama-2-7b")
    engine, machine = presets.find("single").engine, Machine(1, 80)

    def gib(away: bool) -> tuple[float, float]:
        config = ORPOConfig(peft=True, gradient_checkpointing=True, activation_offload=away)
        found = Estimator(hf_config, config, machine, (128, 512, 512)).parts(engine, 8, True, True)
        return device_gib(found), host_gib(found, machine)

    (kept, none), (less, moved) = gib(False), gib(True)
    assert (none, moved) == (0, 2.25)
    assert kept - less == pytest.approx(moved, rel=0.05)
