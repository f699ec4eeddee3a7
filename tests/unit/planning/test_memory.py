"""Memory of weights, gradients and optimizer, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orpo_dist.config import ORPOConfig
from orpo_dist.engines.engine import Engine
from orpo_dist.planning.census import take_census
from orpo_dist.planning.memory import Part, Setting, parts
from orpo_dist.planning.skeleton import Method
from tests.unit.planning.plans import MODELS, by_preset, plan, small_llama, weights_of

# --- the arithmetic

STATES = ("weights", "gradients", "optimizer")


def total(found: list[Part], *names: str) -> float:
    return sum(part.bytes for part in found if part.name in names)


def test_states_by_hand() -> None:
    """Bytes a parameter, as in the ZeRO paper (arXiv 1910.02054, 3) and docs/distributed.md."""
    census = take_census(small_llama(2), ORPOConfig(), Method(), "bf16")
    size = census.total

    def states(
        name: str, accumulates: bool = True, offload: str = "none", reduces_once: bool = True
    ) -> dict[str, float]:
        setting = Setting(Engine(name, offload), 4, accumulates, 0.0, reduces_once=reduces_once)
        found = parts(census, setting)
        return {
            where: total([p for p in found if p.where == where], *STATES) / size
            for where in ("device", "host")
        }  # fmt: skip

    assert states("single")["device"] == 4 + 4 + 8
    assert states("ddp")["device"] == 4 + 4 + 8
    assert states("zero1")["device"] == 2 + 2 + 12 / 4
    assert states("zero2")["device"] == 2 + (4 + 12) / 4
    assert states("zero3")["device"] == (2 + 4 + 12) / 4
    assert states("fsdp2", accumulates=False)["device"] == (4 + 4 + 8) / 4
    assert states("fsdp2")["device"] == (4 + 4 + 8) / 4 + 4  # gradients wait unsharded
    assert states("fsdp2", reduces_once=False) == states("fsdp2", accumulates=False)
    assert states("zero2", offload="cpu") == {"device": 2, "host": 16 / 4}
    assert states("zero3", offload="cpu") == {"device": 0, "host": (16 + 2) / 4}


def test_the_optimizer_by_its_name() -> None:
    """8-bit: a byte a state, a scale per 256, and embeddings in 32 bits; paged: on the host."""
    census = take_census(small_llama(2), ORPOConfig(), Method(), "bf16")
    size, embedded = census.total, small_llama(2).vocab_size * census.hidden
    assert census.embedded == embedded

    def found(optimizer: str, name: str = "single", gpu: bool = True) -> Part:
        setting = Setting(Engine(name), 4, True, 0.0, optimizer=optimizer, gpu=gpu)
        (part,) = (p for p in parts(census, setting) if p.name == "optimizer")
        return part

    blocks = 2 + 2 * 4 / 256
    assert found("adamw_torch").bytes == found("paged_adamw_32bit").bytes == 8 * size
    assert found("sgd").bytes == 0
    assert found("rmsprop_bnb").bytes == found("lion_32bit").bytes == 4 * size
    assert found("adamw_8bit").bytes == pytest.approx(blocks * (size - embedded) + 8 * embedded)
    assert found("lion_8bit").bytes == pytest.approx(found("adamw_8bit").bytes / 2)
    assert found("adamw_8bit", "zero2").bytes == pytest.approx((4 + blocks) * size / 4)
    paged = found("paged_adamw_8bit")
    assert paged.where == "host" and paged.bytes == found("adamw_8bit").bytes
    assert found("paged_adamw_8bit", gpu=False).where == "device"


def test_an_adapter_in_bf16_takes_half() -> None:
    def states(**changes: str) -> dict[str, float]:
        config = ORPOConfig(peft=True, mixed_precision="bf16", **changes)
        census = take_census(small_llama(2), config, Method(True), "bf16")
        found = parts(census, Setting(Engine("ddp"), 4, True, 0.0))
        base = 2 * census.frozen
        sums = {name: total(found, name) for name in STATES}
        return {**sums, "weights": sums["weights"] - base}

    plain, half = states(), states(lora_dtype="bfloat16")
    assert plain["optimizer"] == 2 * plain["weights"] == 2 * plain["gradients"] > 0
    assert half == {name: size / 2 for name, size in plain.items()}


def test_a_fused_step_has_no_temporaries_on_a_gpu() -> None:
    census = take_census(small_llama(2), ORPOConfig(), Method(), "bf16")

    def working(optimizer: str) -> float:
        return total(parts(census, Setting(Engine("ddp"), 4, False, 0.0, optimizer)), "activations")

    assert working("adamw_torch") == working("adamw_8bit") == 0
    assert working("adamw_apex_fused") == 4 * census.trains


def test_gradients_of_large_models_do_not_wait_whole(capsys: Any, tmp_path: Path) -> None:
    """70B in fp32 would take 263 GiB on every GPU, as long as a step has micro-batches to come."""
    words = ["--gpus", "64", "--max-completion-length", "512", "--gradient-checkpointing"]
    words += ["--batch-size", "4", "--gradient-accumulation", "4", "--asked-only"]
    words += ["--max-tokens-per-microbatch", "none"]
    for model, memory, whole in (("llama-3-70b", "80", False), ("smollm2-135m", "24", True)):
        _, found = plan(
            capsys, tmp_path, "--model", str(MODELS / model), "--gpu-memory", memory, *words
        )
        chosen = by_preset(found, "full", True)["fsdp2"]
        parameters = weights_of(chosen) * 64 / 4
        assert sum(p["bytes"] for p in chosen["parts"] if p["name"] == "gradients") == (
            pytest.approx(4 * parameters * (1 / 64 + whole))
        )
        micro_batches = chosen["micro_batches"]
        assert micro_batches > 1 and chosen["fits"]
        assert chosen["time"]["sent_gb"] * 64 / 63 * 1e9 == pytest.approx(
            parameters * (4 * micro_batches + 4 * (1 if whole else micro_batches))
        )
