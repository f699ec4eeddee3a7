"""Composite checkpoints: the language part trains, towers stay and are saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.zoo.check import COMMON, rows, save_tiny
from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.models.towers import freeze_towers


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_a_tower_stays_as_it_is_and_is_saved_whole(family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path / "model")
    config = ORPOConfig(project_name=str(tmp_path / "run"), **COMMON, lr=1e-2)
    trainer = ORPOTrainer(str(tmp_path / "model"), config, rows())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    before, after = (tensors_in(tmp_path / name) for name in ("model", "saved"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("vision" in name or "projector" in name for name in moved)
    assert any("language_model" in name for name in moved)


def test_a_model_that_only_reads_is_left_alone(tiny_model: Any) -> None:
    assert freeze_towers(tiny_model) == 0
    assert all(p.requires_grad for p in tiny_model.parameters())
