"""Layers with a state get rows: packed hybrids equal single forwards, prompts once all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from orpo_dist.scoring import proof
from orpo_dist.scoring.masks import Unpackable
from orpo_dist.scoring.packing import pack_pairs
from orpo_dist.scoring.rows import Rows, row_arrays
from orpo_dist.scoring.scorer import Scorer, make_scorer
from tests.conftest import disturbed
from tests.invariance.test_proof import made
from tests.invariance.test_sinks import MOE, assert_equal_to_single_forwards, long_pairs

LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "num_hidden_layers": 4,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
SHORT_CONV = {"layer_types": ["conv", "full_attention", "conv"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Next": {**LINEAR, **EXPERTS, "head_dim": 8},
    "Qwen3_5": {**LINEAR, "head_dim": 8},
    "Lfm2": SHORT_CONV,
    "Bamba": {**MAMBA, "attn_layer_indices": [1]},
    "GraniteMoeHybrid": {**MAMBA, **MOE, "shared_intermediate_size": 32,
                         "layer_types": ["mamba", "attention", "mamba"]},
    "Llama4": {"head_dim": 8, "attention_chunk_size": 32, "floor_scale": 16, "num_hidden_layers": 4,
               "intermediate_size_mlp": 32, "num_local_experts": 4, "num_experts_per_tok": 1},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_single_forwards(family: str) -> None:
    model = disturbed(made(family, **FAMILIES[family]), 1).eval()
    scorer = make_scorer(model, "auto", "prompt_and_completion")
    assert scorer.packed and scorer.rows and scorer.padded
    assert_equal_to_single_forwards(model, scorer)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bf16_the_decision_is_the_same(family: str) -> None:
    assert make_scorer(made(family, **FAMILIES[family]).bfloat16(), "auto").packed


@pytest.mark.parametrize("family", ["Lfm2", "Llama4"])
def test_with_checkpointing(family: str) -> None:
    model, gradients = made(family, **FAMILIES[family]), []
    scorer = make_scorer(model, "packed")
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        scores = scorer.score(model.train(), scorer.collate(long_pairs()))
        gradients.append(proof.measured(model, proof.packed_scores(scores))[1])
    torch.testing.assert_close(*gradients)


def test_only_those_layers_are_padded() -> None:
    """Multilayer perceptrons and the head see every prompt once and no padding."""
    model = made("Lfm2", **SHORT_CONV)
    scorer = make_scorer(model, "packed")
    batch = scorer.collate(long_pairs())
    seen: dict[str, set[int]] = {"conv": set(), "feed_forward": set()}
    for name, module in model.named_modules():
        if name.endswith(".in_proj"):
            module.register_forward_hook(lambda _, x, __: seen["conv"].add(x[0].shape[:2].numel()))
        if name.endswith(".w1"):
            module.register_forward_hook(
                lambda _, x, __: seen["feed_forward"].add(x[0].shape[:2].numel())
            )
    scorer.score(model, batch)
    packed = sum(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in long_pairs())
    assert seen == {"conv": {batch.rows.cells.numel()}, "feed_forward": {packed}}
    assert batch.rows.cells.shape == (6, 70)


def test_rows_hold_each_answer_after_its_prompt() -> None:
    pairs = long_pairs()
    batch = pack_pairs(pairs, rows=True)
    rows = batch.rows
    assert rows is not None
    spread = batch.input_ids[0][rows.cells]
    sequences = [p.prompt + answer for p in pairs for answer in (p.chosen, p.rejected)]
    for row, sequence in zip(spread, sequences, strict=True):
        assert row[: len(sequence)].tolist() == sequence
    assert torch.equal(rows.gathered(spread[..., None])[..., 0], batch.input_ids)


def test_the_gradient_of_a_prompt_is_that_of_both_its_rows() -> None:
    torch.manual_seed(0)
    arrays = row_arrays(np.array([(3, 2, 4), (1, 5, 1)]))
    rows = Rows(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    packed = torch.randn(1, 16, 2, requires_grad=True, dtype=torch.float64)
    inside = torch.zeros(rows.cells.numel(), 1)
    inside[torch.cat([rows.home, rows.again_cells])] = 1
    upstream = torch.randn(4, 7, 2, dtype=torch.float64) * inside.view(4, 7, 1)
    found = torch.autograd.grad(rows.spread(packed), packed, upstream)[0]
    expected = torch.autograd.grad(packed[0][rows.cells], packed, upstream)[0]
    torch.testing.assert_close(found, expected)


def test_a_layer_without_rows_in_a_packed_pass_is_refused() -> None:
    model = made("Lfm2", **SHORT_CONV)
    scorer = make_scorer(model, "packed")
    assert scorer.rows
    without = Scorer(True)
    with pytest.raises(Unpackable, match="whole rows"):
        without.score(model, without.collate(long_pairs()))


def test_other_calls_of_a_hybrid_stay_as_they_were() -> None:
    model = made("Lfm2", **SHORT_CONV).eval()
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}

    def outputs() -> list[torch.Tensor]:
        return [model(ids).logits, model.generate(ids, eos_token_id=-1, **options)]

    before = outputs()
    assert make_scorer(model, "auto").packed
    for one, other in zip(before, outputs(), strict=True):
        torch.testing.assert_close(one, other)
