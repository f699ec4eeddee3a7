"""Attention sinks, windows and chunks that live in the mask alone, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

import orpo_dist.scoring.attention
import orpo_dist.scoring.varlen
from orpo_dist.base.types import Pair
from orpo_dist.scoring import proof
from orpo_dist.scoring.attention import PREFIX, packed_attention
from orpo_dist.scoring.masks import PackedMask, Unpackable
from orpo_dist.scoring.scorer import Scorer, make_scorer
from tests.conftest import disturbed
from tests.invariance.test_proof import made
from tests.invariance.test_varlen import kernel_on_cpu  # noqa: F401

SEGMENTS = ((11, 7, 9), (3, 14, 2), (1, 2, 3))
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip

FAMILIES: dict[str, dict[str, Any]] = {
    "GptOss": {"head_dim": 8, "sliding_window": 32, **MOE},
    "GraniteSWA": {"sliding_window": 32},
    "GraniteMoeSWA": {"sliding_window": 32, **MOE},
    "MiMoV2Flash": {"head_dim": 8, "sliding_window": 32, **ROUTED},
    "Phimoe": {"sliding_window": 32, "num_local_experts": 4},
    "Afmoe": {"sliding_window": 32, "num_dense_layers": 1, "num_experts": 4,
              "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "Nemotron": {},
    "StableLm": {},
}  # fmt: skip
SINKS = ("GptOss", "GraniteSWA", "GraniteMoeSWA", "MiMoV2Flash")


def long_pairs() -> list[Pair]:
    draw = torch.Generator().manual_seed(3)
    return [
        Pair(*(torch.randint(3, 300, (n,), generator=draw).tolist() for n in lengths))
        for lengths in ((40, 30, 23), (5, 50, 20), (33, 3, 1))
    ]


def answers(x: Tensor) -> list[Tensor]:
    """Prompt with each answer, (1, H, n, D), of a packed (1, H, T, D)."""
    found = []
    for part, (p, c, r) in zip(x.split([sum(s) for s in SEGMENTS], 2), SEGMENTS, strict=True):
        prompt, chosen, rejected = part.split([p, c, r], 2)
        found += [torch.cat([prompt, chosen], 2), torch.cat([prompt, rejected], 2)]
    return found


@pytest.mark.parametrize("window", [None, 6])
def test_sinks_are_one_more_column_of_the_softmax(window: int | None) -> None:
    """Beside the attention of gpt-oss itself, an answer at a time; gradients of sinks included."""
    torch.manual_seed(0)
    total = sum(map(sum, SEGMENTS))
    leaves = [torch.randn(1, heads, total, 8, requires_grad=True) for heads in (4, 2, 2)]
    sinks = torch.linspace(-2, 3, 4).requires_grad_()
    upstream = torch.randn(1, total, 4, 8)
    module = SimpleNamespace(sinks=sinks, num_key_value_groups=2, training=False)
    alone = []
    for query, key, value in zip(*map(answers, leaves), strict=True):
        distance = torch.arange(query.shape[2])[:, None] - torch.arange(query.shape[2])
        seen = (distance >= 0) & (distance < (window or 99))
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        alone.append(eager_attention_forward(module, query, key, value, mask, 0.3)[0])
    rows = [
        part
        for (p, _, _), chosen, rejected in zip(SEGMENTS, alone[::2], alone[1::2], strict=True)
        for part in (chosen, rejected[:, p:])
    ]
    mask = PackedMask(SEGMENTS, window=window)
    found = [
        [output, *torch.autograd.grad(output, [*leaves, sinks], upstream)]
        for output in (packed_attention(*leaves, mask, 0.3, None, sinks), torch.cat(rows, 1))
    ]
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def assert_equal_to_single_forwards(model: Any, scorer: Scorer) -> None:
    """Scores of prompts and answers, and the gradient of every parameter."""
    pairs = long_pairs()
    expected = proof.measured(model, proof.alone(model, pairs))
    found = proof.measured(model, proof.packed_scores(scorer.score(model, scorer.collate(pairs))))
    assert proof.scores_apart(found[0], expected[0], pairs) < 1e-5
    assert proof.gradient_apart(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize(
    ("family", "varlen"), [*((f, False) for f in FAMILIES), *((f, True) for f in SINKS)]
)
def test_packed_beyond_windows_and_equal_to_single_forwards(family: str, varlen: bool) -> None:
    """By the kernel where there are sinks; without, it has tests of its own."""
    model = disturbed(made(family, **FAMILIES[family]), 1).eval()
    assert make_scorer(model, "auto").packed
    assert_equal_to_single_forwards(model, Scorer(True, "prompt_and_completion", varlen=varlen))


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bf16_the_decision_is_the_same(family: str) -> None:
    assert make_scorer(made(family, **FAMILIES[family]).bfloat16(), "auto").packed


def test_checkpointing_hands_the_mask_on() -> None:
    model = made("GptOss", **FAMILIES["GptOss"])
    pairs, gradients = long_pairs(), []
    scorer = make_scorer(model, "packed")
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        model.train()
        scores = scorer.score(model, scorer.collate(pairs))
        gradients.append(proof.measured(model, proof.packed_scores(scores))[1])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "given", [{"position_bias": torch.zeros(1)}, {"indices": torch.zeros(1)}, {"is_causal": False}]
)
def test_what_attention_gets_besides_is_refused(given: dict[str, Any]) -> None:
    """Also where its values happen to change nothing."""
    packed = AttentionInterface()[PREFIX + "sdpa"]
    heads = [torch.zeros(1, 2, 6, 8)] * 3
    mask = PackedMask(((1, 2, 3),))
    packed(None, *heads, mask, dropout=0.0, sliding_window=3, position_ids=torch.zeros(1, 6))
    with pytest.raises(Unpackable, match=f"{next(iter(given))}.*which packing does not know"):
        packed(None, *heads, mask, **given)


def test_dropped_arguments_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Position biases, as an argument of attention, are no longer dropped."""
    model = made("Llama")
    plain = orpo_dist.scoring.attention._packed

    def biased(*args: Any, **kwargs: Any) -> Tensor:
        return plain(*args, **kwargs, position_bias=torch.zeros(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orpo_dist.scoring.attention, "_packed", biased)
        assert not make_scorer(model, "auto").packed
    assert "LlamaForCausalLM gives its attention position_bias" in caplog.text


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        (
            "GPTJ",
            {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
            "attention of its own",
        ),
        ("Falcon", {"num_key_value_heads": None}, "attention of its own"),
    ],
)
def test_attention_that_is_not_from_the_interface_is_named(
    family: str, settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not make_scorer(made(family, **settings), "auto").packed
    assert reason in caplog.text
