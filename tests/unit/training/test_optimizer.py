"""AdamW in its two forms: which is taken, and that a run may change between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.engines.runtime import start
from orpo_dist.training.arguments import training_arguments
from tests.conftest import ROOT

SMOKE = ROOT / "orpo_dist" / "sweeps" / "presets" / "smoke" / "model"


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("changes", "on_cpu", "on_gpu"),
    [
        ({}, "adamw_torch", "adamw_torch_fused"),
        ({"optimizer": "sgd"}, "sgd", "sgd"),
        ({"optimizer": "adamw_torch_fused"}, "adamw_torch_fused", "adamw_torch_fused"),
    ],
)
def test_adamw_is_fused_on_a_gpu(
    gpu: bool, changes: dict[str, Any], on_cpu: str, on_gpu: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("orpo_dist.training.arguments._on_gpu", lambda: gpu)
    made = training_arguments(ORPOConfig(log="none", **changes), str(tmp_path), start())
    assert made.optim.value == (on_gpu if gpu else on_cpu)


def losses(folder: Path, model: Path, rows: Any, optim: str, resume: Any = None) -> list[float]:
    config = ORPOConfig(
        project_name=str(folder), max_steps=4, batch_size=2, gradient_accumulation=1, lr=1e-2,
        logging_steps=1, save_strategy="steps", save_steps=2, log="none",
        optimizer=optim,
    )  # fmt: skip
    trainer = ORPOTrainer(str(model), config, rows[:20])
    trainer.train(resume_from_checkpoint=resume)
    return [entry["loss/orpo"] for entry in trainer.state.log_history if "loss/orpo" in entry]


@pytest.mark.parametrize("resumed", ["adamw_torch", "adamw_torch_fused"])
def test_checkpoints_of_either_form_go_on_in_the_other(
    resumed: str, tiny_model_dir: Path, demo_rows: Any, tmp_path: Path
) -> None:
    """Older versions saved the plain form on a GPU too."""
    (first,) = {"adamw_torch", "adamw_torch_fused"} - {resumed}
    whole = losses(tmp_path / "whole", tiny_model_dir, demo_rows, first)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    again = losses(tmp_path / "again", tiny_model_dir, demo_rows, resumed, checkpoint)
    assert again[-2:] == pytest.approx(whole[-2:], rel=1e-6)


def test_an_8bit_state_goes_on_to_the_last_bit_paged_or_not(
    tmp_path: Path, demo_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a model that is large enough for blocks, beside AdamW's losses."""
    model = tmp_path / "model"
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    config = LlamaConfig(**shape, num_attention_heads=2, vocab_size=600)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    AutoTokenizer.from_pretrained(SMOKE).save_pretrained(model)
    plain = losses(tmp_path / "plain", model, demo_rows, "adamw_torch")
    whole = losses(tmp_path / "whole", model, demo_rows, "adamw_8bit")
    assert whole == pytest.approx(plain, rel=1e-2) and whole != plain
    assert "pages its state" not in caplog.text
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert list((checkpoint / "optimizer").glob("uncut-*.pt"))  # there are blocks
    again = losses(tmp_path / "again", model, demo_rows, "paged_adamw_8bit", checkpoint)
    assert again[-2:] == whole[-2:]
    said = "optimizer paged_adamw_8bit: pages its state between a GPU and the host; on this CPU it"
    assert f"{said} is adamw_8bit" in caplog.text


def test_both_forms_train_alike() -> None:
    draw = torch.Generator().manual_seed(0)
    start_at, gradients = (torch.randn(n, 40, 30, generator=draw) for n in (1, 5))
    found = []
    for fused in (False, True):
        weight = torch.nn.Parameter(start_at[0].clone())
        optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1, fused=fused)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        found.append(weight.detach())
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)


def test_gradients_lie_in_the_buckets_of_ddp(
    tiny_model_dir: Path, demo_rows: Any, tmp_path: Path
) -> None:
    config = ORPOConfig(project_name=str(tmp_path), log="none")
    trainer = ORPOTrainer(str(tiny_model_dir), config, demo_rows[:8])
    assert trainer.accelerator.ddp_handler.to_kwargs()["gradient_as_bucket_view"]
