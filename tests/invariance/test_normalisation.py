"""One objective: how a step is cut changes nothing, and alpha's end points are what they say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.data import Encoder, Limits, Source, build
from orpo_dist.data.rows import Columns
from orpo_dist.scoring.objective import orpo_loss
from orpo_dist.scoring.padding import pad_pairs, padded_scores

Rows = list[dict[str, str]]


def run(
    model: Any, tokenizer: Any, rows: Rows, folder: Path, **settings: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train a copy of the model; the loss curve and the final weights."""
    values = {
        "project_name": str(folder),
        "max_steps": 4,
        "batch_size": 8,
        "gradient_accumulation": 1,
        "lr": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "log": "none",
        **settings,
    }
    trainer = ORPOTrainer(
        model=copy.deepcopy(model),
        args=ORPOConfig(**values),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [entry["loss/orpo"] for entry in trainer.state.log_history if "loss/orpo" in entry]
    return losses, {k: v.detach() for k, v in trainer.model.state_dict().items()}


def test_accumulation_does_not_change_the_curve_or_the_weights(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    losses, weights = run(tiny_model, tokenizer, demo_rows[:30], tmp_path)
    assert len(losses) == 4
    for micro in (1, 4):
        cut, cut_weights = run(
            tiny_model,
            tokenizer,
            demo_rows[:30],
            tmp_path,
            batch_size=micro,
            gradient_accumulation=8 // micro,
        )
        assert cut == pytest.approx(losses, rel=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(cut_weights[name], tensor, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_a_token_budget_does_not_change_the_curve_or_the_weights(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path, attention: str
) -> None:
    losses, weights = run(tiny_model, tokenizer, demo_rows[:30], tmp_path)
    cut, cut_weights = run(
        tiny_model,
        tokenizer,
        demo_rows[:30],
        tmp_path,
        attention=attention,
        max_tokens_per_microbatch=120,
    )
    assert cut == pytest.approx(losses, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(cut_weights[name], tensor, atol=2e-5, rtol=1e-4, msg=name)


def test_logged_metrics_equal_the_loss_that_trainer_reports(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    trainer = ORPOTrainer(
        model=tiny_model,
        args=ORPOConfig(
            project_name=str(tmp_path), max_steps=6, logging_steps=3, save_strategy="no", log="none"
        ),
        train_dataset=demo_rows[:50],
        processing_class=tokenizer,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss/orpo" in entry]
    assert [entry["step"] for entry in entries] == [1, 3, 6]
    for entry in entries:
        assert entry["loss/orpo"] == pytest.approx(entry["loss"], rel=1e-5)


def test_alpha_zero_trains_exactly_like_plain_sft(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    """Against a hand-written loop with transformers' own cross-entropy on the chosen answers."""
    model = copy.deepcopy(tiny_model)
    _, weights = run(
        tiny_model, tokenizer, demo_rows[:8], tmp_path,
        orpo_alpha=0, optimizer="sgd", scheduler="constant", warmup_ratio=0, weight_decay=0,
        max_grad_norm=0, lr=0.5, epochs=4,
    )  # fmt: skip
    named = ((f"row {i}", row) for i, row in enumerate(demo_rows[:8]))
    pairs = build([Source("rows", named, [])], Encoder(tokenizer, limits=Limits(128)), Columns())
    sequences = [pairs[i].prompt + pairs[i].chosen for i in range(8)]
    width = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (width - len(s)) for s in sequences])
    labels = torch.tensor([
        [-100] * len(pairs[i].prompt) + pairs[i].chosen + [-100] * (width - len(s))
        for i, s in enumerate(sequences)
    ])  # fmt: skip
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(4):
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_convex_alpha_one_has_the_gradient_of_the_odds_term_alone(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows
) -> None:
    named = ((f"row {i}", row) for i, row in enumerate(demo_rows[:4]))
    pairs = build([Source("rows", named, [])], Encoder(tokenizer), Columns())
    batch = pad_pairs([pairs[i] for i in range(4)])
    parameters = list(tiny_model.parameters())

    def gradient(alpha: float, form: Any) -> torch.Tensor:
        loss, _ = orpo_loss(padded_scores(tiny_model, batch), alpha, form)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    odds_alone = gradient(1.0, "additive") - gradient(0.0, "additive")
    torch.testing.assert_close(gradient(1.0, "convex"), odds_alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient(0.0, "convex"), gradient(0.0, "additive"))


def test_four_alphas_give_four_models(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    found = [
        run(tiny_model, tokenizer, demo_rows[:16], tmp_path, orpo_alpha=alpha)
        for alpha in (0, 0.5, 1, 2)
    ]
    name = "model.layers.0.mlp.down_proj.weight"
    for i, (losses, weights) in enumerate(found):
        for other_losses, other in found[:i]:
            assert losses[0] != pytest.approx(other_losses[0], rel=1e-3)
            assert (weights[name] - other[name]).abs().max() > 1e-4
