"""The examples do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_dist import ORPOConfig, ORPOTrainer, train
from tests.conftest import DEMO, ROOT


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Seen(ORPOTrainer):
    """Keeps the loss and the gradients of the step, as they are before clipping."""

    loss = 0.0
    gradients: dict[str, torch.Tensor] = {}  # noqa: RUF012

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, *args, **kwargs)
        Seen.loss = loss.item()
        Seen.gradients = {
            name: weight.grad.clone()
            for name, weight in model.named_parameters()
            if weight.grad is not None
        }
        return loss


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention": "padded", "nll_scope": "prompt_and_completion"},
        {"peft": True, "orpo_alpha": 0.3, "loss_form": "convex"},
    ],
    ids=["full", "padded", "adapter"],
)
def test_a_step_by_hand_is_the_trainers(
    tiny_model_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = ORPOConfig(
        model=str(tiny_model_dir), data_path=[str(DEMO / "train.jsonl")], max_steps=1, log="none",
        project_name=str(tmp_path / "run"), warmup_ratio=0, max_tokens_per_microbatch=None,
        mixed_precision="none", batch_size=2, gradient_accumulation=3, **settings,
    )  # fmt: skip
    by_hand = example("by_hand")
    model, loss = by_hand.gradient(config)
    gradients = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    by_hand.update(model, config)
    trained = train(config, trainer_class=Seen).model

    assert loss == pytest.approx(Seen.loss, abs=1e-6)
    assert gradients.keys() == Seen.gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, Seen.gradients[name], rtol=0, atol=0)
    for (name, one), (other_name, other) in zip(
        model.named_parameters(), trained.named_parameters(), strict=True
    ):
        assert name == other_name
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert any(gradient.abs().sum() for gradient in gradients.values())
