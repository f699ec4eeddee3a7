"""What ``kernels`` comes to on a machine, and what is refused before any weight is loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.base.types import UserError
from orpo_dist.models import kernels
from orpo_dist.models.kernels import settle_kernels, why_not_kernels
from orpo_dist.training.arguments import resolve
from orpo_dist.training.summary import derived_truth, settled_facts


class Alone:
    def on_main(self, make: Any) -> Any:
        return make()


def settled(asked: str, device: str) -> str:
    config = ORPOConfig(kernels=asked)
    return settle_kernels(None, config, Alone(), torch.device(device))  # type: ignore[arg-type]


def test_refusals_name_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="kernels liger needs a GPU; use auto, compile or none"):
        resolve(ORPOConfig(kernels="liger"), False)
    with pytest.raises(UserError, match="activation_offload needs a GPU"):
        resolve(ORPOConfig(activation_offload=True, gradient_checkpointing=True), False)
    with pytest.raises(UserError, match=r"kernels compile: zero3 gathers .*; use none"):
        resolve(ORPOConfig(kernels="compile"), False, 2, "zero3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "is_installed", lambda: False)
    said = why_not_kernels(ORPOConfig(kernels="liger"), "ddp")
    assert said is not None and "pip install 'orpo_dist[kernels]'" in said
    assert why_not_kernels(ORPOConfig(), "zero3") is None


def test_auto(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "orpo_dist")
    used: list[Any] = []
    monkeypatch.setattr(kernels, "use_liger", used.append)
    monkeypatch.setattr(kernels, "is_installed", lambda: False)
    assert settled("auto", "cpu") == settled("none", "cpu") == settled("none", "cuda") == "none"
    assert not caplog.text
    assert settled("auto", "cuda") == "none" and "pip install" in caplog.text
    monkeypatch.setattr(kernels, "is_installed", lambda: True)
    monkeypatch.setattr(kernels, "why_not_liger", lambda *_: "computes something else (by 0.2)")
    assert settled("liger", "cuda") == "none" and not used
    assert "kernels liger: none, because Liger computes something else (by 0.2)" in caplog.text
    monkeypatch.setattr(kernels, "why_not_liger", lambda *_: None)
    assert settled("auto", "cuda") == "liger" and used == [None]


def test_a_run_says_it(tiny_model_dir: Path, demo_rows: Any, tmp_path: Path) -> None:
    config = ORPOConfig(
        project_name=str(tmp_path), log="none", gradient_checkpointing="auto", max_steps=1
    )
    trainer = ORPOTrainer(str(tiny_model_dir), config, demo_rows[:16])
    trainer.settle_budget()
    said = derived_truth(trainer)
    assert "kernels auto: the model's own layers" in said and "recomputed" not in said
    facts = settled_facts(trainer)
    assert (facts["kernels"], facts["gradient_checkpointing"]) == ("none", False)
    config = config.replace(kernels="none", gradient_checkpointing="every:2")
    trainer = ORPOTrainer(str(tiny_model_dir), config, demo_rows[:16])
    trainer.settle_budget()
    assert ", recomputed every:2 |" in derived_truth(trainer)
