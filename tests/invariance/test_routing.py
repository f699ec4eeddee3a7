"""The router loss is transformers' own, of each pair, however a step is cut."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from orpo_dist import ORPOConfig, ORPOTrainer, UserError
from orpo_dist.base.types import Pair
from orpo_dist.models.randomness import quiet
from orpo_dist.scoring.routing import wants_balance, why_not_balanced
from orpo_dist.scoring.scorer import make_scorer
from tests.families import small_config

# (family, whether it packs)
FAMILIES = (
    ("mixtral", True), ("qwen2_moe", True), ("qwen3_moe", True), ("olmoe", True),
    ("minimax", False), ("gpt_oss", False), ("jamba", False), ("ernie4_5_moe", True),
    ("granitemoe", True),
)  # fmt: skip
LENGTHS = ((5, 3, 7), (1, 9, 2), (12, 4, 4), (3, 6, 1))
ROWS = [
    {"prompt": f"Question {n}: why is that?", "chosen": "Because " * (n + 1), "rejected": "No." * n}
    for n in range(1, 7)
]


def moe(kind: str, **changes: Any) -> Any:
    """A model whose router has opinions."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(kind, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    quiet(model)
    return model


def pairs() -> list[Pair]:
    draw = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(5, 150, (count,), generator=draw).tolist()

    return [Pair(*map(tokens, lengths)) for lengths in LENGTHS]


def oracle(model: Any, pair: Pair) -> Tensor:
    """transformers' own loss over the router logits of two plain forward passes."""
    found = [
        model(
            input_ids=torch.tensor([pair.prompt + answer]),
            use_cache=False, output_router_logits=True,
        ).router_logits
        for answer in (pair.chosen, pair.rejected)
    ]  # fmt: skip
    both = tuple(
        torch.cat([one.flatten(0, -2) for one in layer]) for layer in zip(*found, strict=True)
    )
    loss = sys.modules[type(model).__module__].load_balancing_loss_func
    return loss(both, both[0].shape[-1], model.num_experts_per_tok)


@pytest.mark.parametrize(("kind", "packs"), FAMILIES)
def test_packed_and_padded_agree_with_plain_forward_passes(kind: str, packs: bool) -> None:
    model, some = moe(kind), pairs()
    assert why_not_balanced(model) is None
    wanted = torch.stack([oracle(model, pair) for pair in some])
    wanted.sum().backward()
    slopes = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert sum(slope.norm() for slope in slopes.values()) > 1e-3
    for attention in ("padded", "packed") if packs else ("padded",):
        scorer = make_scorer(model, attention)
        scorer = type(scorer)(scorer.packed, top_k=model.num_experts_per_tok)
        model.zero_grad()
        found = scorer.score(model, scorer.collate(some)).balance
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        found.sum().backward()
        for name, parameter in model.named_parameters():
            if name in slopes:
                torch.testing.assert_close(parameter.grad, slopes[name], rtol=1e-3, atol=1e-5)


def trainer(folder: Path, tokenizer: Any, **changes: Any) -> ORPOTrainer:
    model = moe("qwen3_moe", vocab_size=len(tokenizer))
    values = {
        "project_name": str(folder), "log": "none", "max_steps": 2, "global_batch_size": 6,
        "lr": 3e-3, "logging_steps": 1, "save_strategy": "no", "warmup_ratio": 0,
        "router_aux_loss_coef": 0.5, "batch_size": 6, "gradient_accumulation": 1,
    }  # fmt: skip
    return ORPOTrainer(
        model=model,
        args=ORPOConfig(**{**values, **changes}),
        train_dataset=ROWS,
        eval_dataset=ROWS[:3],
        processing_class=tokenizer,
    )


def lines(some: ORPOTrainer) -> list[dict[str, float]]:
    some.train()
    return [entry for entry in some.state.log_history if "loss/orpo" in entry]


def test_a_step_is_the_same_however_it_is_cut(tokenizer: Any, tmp_path: Path) -> None:
    cuts = (
        {},
        {"max_tokens_per_microbatch": 40},
        {"attention": "padded"},
        {"gradient_checkpointing": True},
        {"max_tokens_per_microbatch": None, "batch_size": 2, "attention": "padded"},
    )
    runs = [
        lines(trainer(tmp_path / str(number), tokenizer, **cut)) for number, cut in enumerate(cuts)
    ]
    for run in runs[1:]:
        for ours, first in zip(run, runs[0], strict=True):
            for name in ("loss", "loss/orpo", "loss/router", "grad_norm"):
                assert ours[name] == pytest.approx(first[name], rel=1e-4), name
    one = runs[0][0]
    parts = one["loss/sft"] + one["loss/odds_ratio"] + 0.5 * one["loss/router"]
    assert one["loss/orpo"] == pytest.approx(parts, rel=1e-5)


def test_it_evens_the_load_and_is_in_evaluations_too(tokenizer: Any, tmp_path: Path) -> None:
    told = trainer(tmp_path, tokenizer, max_steps=8, router_aux_loss_coef=5.0)
    before = told.evaluate()["eval_loss/router"]
    first, *_, last = lines(told)
    assert last["loss/router"] < first["loss/router"]
    assert told.evaluate()["eval_loss/router"] < before


def test_off_is_as_before_and_says_so_once(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = lines(trainer(tmp_path, tokenizer, router_aux_loss_coef=None))
    assert not any("loss/router" in line for line in found)
    assert "router loss" not in caplog.text
    model = AutoModelForCausalLM.from_config(
        small_config("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.01)
    )
    with caplog.at_level(logging.WARNING, "orpo_dist"):
        assert not wants_balance(model, None)
        assert caplog.text.count("set router_aux_loss_coef to 0.01 to train it") == 1
        assert not wants_balance(model, 0.0)
        assert wants_balance(model, 0.1)
    assert caplog.text.count("router loss") == 1


def test_a_model_without_one_is_refused(tiny_model: Any) -> None:
    with pytest.raises(UserError, match=r"router_aux_loss_coef 0\.1: LlamaForCausalLM has no rout"):
        wants_balance(tiny_model, 0.1)
