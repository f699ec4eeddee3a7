"""One GPU for one process, and what is decided by what torch sees."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.base import device
from orpo_dist.models.model import resolve_precision

Rows = list[dict[str, str]]


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> Iterator[None]:
    said = device.mention_idle_gpus, device.mention_emulated_bf16
    for line in said:
        line.cache_clear()
    yield
    for line in said:
        line.cache_clear()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as transformers counts; torch still computes on the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def trainer_on(folder: Path, model: Any, rows: Rows, tokenizer: Any, **changes: Any) -> ORPOTrainer:
    values = {
        "project_name": str(folder), "max_steps": 2, "batch_size": 4, "gradient_accumulation": 1,
        "save_strategy": "no", "log": "none", "eval_strategy": "epoch",
    }  # fmt: skip
    settings = ORPOConfig(**{**values, **changes})
    return ORPOTrainer(model, settings, rows[:8], rows[8:13], tokenizer)


@pytest.mark.parametrize("precision", ["none", "bf16"])
def test_one_process_takes_one_gpu_of_two(
    precision: str,
    two_gpus: None,
    tiny_model: Any,
    tokenizer: Any,
    demo_rows: Rows,
    tmp_path: Path,
) -> None:
    trainer = trainer_on(tmp_path, tiny_model, demo_rows, tokenizer, mixed_precision=precision)
    trainer.args._n_gpu = 2  # with bf16 on a CPU transformers does not count
    assert (trainer.args.n_gpu, trainer.args.world_size) == (1, 1)
    assert (trainer.args.train_batch_size, trainer.args.eval_batch_size) == (4, 4)
    assert trainer.args.parallel_mode.value == "not_parallel"
    computed = []
    layer = tiny_model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda *given: computed.append(given[2].dtype))
    trainer.train()
    assert not isinstance(trainer.model_wrapped, nn.DataParallel)
    trained = len(computed)
    assert trained and trainer.evaluate()["eval_loss"] > 0 and len(computed) > trained
    assert set(computed) == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_idle_gpus_are_mentioned_once_with_the_way_to_use_them(
    two_gpus: None,
    tiny_model: Any,
    tokenizer: Any,
    demo_rows: Rows,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "orpo_dist"):
        for _ in range(2):  # as in a run of two stages
            trainer_on(tmp_path, tiny_model, demo_rows, tokenizer)
    assert [line for line in caplog.messages if "GPU" in line] == [
        "2 GPUs are visible and one is used; 'orpo-dist launch ddp -- train ...' uses all"
    ]


@pytest.mark.parametrize(("gpus", "world"), [(0, "1"), (1, "1"), (2, "2")])
def test_no_gpu_is_idle(
    gpus: int, world: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("WORLD_SIZE", world)
    with caplog.at_level(logging.INFO, "orpo_dist"):
        device.mention_idle_gpus("train")
    assert not caplog.messages


@pytest.mark.parametrize("sees", [True, False])
def test_deepspeed_computes_where_torch_does(sees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    monkeypatch.setenv("DS_ACCELERATOR", "")  # to have it back afterwards
    monkeypatch.delenv("DS_ACCELERATOR")
    device.deepspeed_follows_torch()
    assert os.environ.get("DS_ACCELERATOR") == (None if sees else "cpu")


def gpu_of(monkeypatch: pytest.MonkeyPatch, major: int) -> None:
    """A GPU of a compute capability, as torch shows it; from 8 on they have bf16."""

    class Properties:
        def __init__(self) -> None:
            self.major = major

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)  # emulated
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")


@pytest.mark.parametrize(("major", "precision"), [(7, "fp16"), (8, "bf16"), (9, "bf16")])
def test_the_precision_is_one_that_the_gpu_has(
    major: int, precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu_of(monkeypatch, major)
    assert resolve_precision(ORPOConfig()) == precision
    assert not caplog.messages
    for _ in range(2):
        assert resolve_precision(ORPOConfig(mixed_precision="bf16")) == "bf16"
    assert len(caplog.messages) == (major < 8)
    assert all("Tesla T4" in line and "fp16" in line for line in caplog.messages)


def test_bf16_on_a_cpu_is_no_matter_of_gpus(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_precision(ORPOConfig(mixed_precision="bf16")) == "bf16"
    assert resolve_precision(ORPOConfig()) == "none"
    assert not caplog.messages
