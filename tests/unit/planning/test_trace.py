"""The trace against the real thing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orpo_dist.config import ORPOConfig
from orpo_dist.models.recomputing import Form, recompute
from orpo_dist.planning.estimate import Estimator, Machine
from orpo_dist.planning.skeleton import Method
from tests.unit.planning.plans import small_llama

# --- the trace against the real thing


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("checkpointing", [False, "every:2", "keep_attention", True])
@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_activations_are_those_of_a_real_step(
    peft: bool, checkpointing: Form, attention: str
) -> None:
    """Planned from two and three layers; allocated by five, counted by torch's own profiler."""
    hf_config = small_llama(5)
    lengths = (40, 30, 20)
    config = ORPOConfig(peft=peft, attention=attention)
    estimator = Estimator(hf_config, config, Machine(1, 16, gpu=False), lengths)
    planned = estimator.activations(Method(peft), False, checkpointing, 3)
    measured = really_allocated(hf_config, config, checkpointing, lengths, 3)
    assert planned == pytest.approx(measured, rel=0.05)


def really_allocated(
    hf_config: Any, config: ORPOConfig, checkpointing: Form, lengths: Any, count: int
) -> float:
    """Peak bytes of one micro-batch beside weights and gradients, of real tensors."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import AutoModelForCausalLM

    from orpo_dist.base.types import Pair
    from orpo_dist.models.adapters import add_adapter, lora_config
    from orpo_dist.scoring.objective import orpo_loss
    from orpo_dist.scoring.scorer import make_scorer

    model = AutoModelForCausalLM.from_config(hf_config)
    if config.peft:
        model = add_adapter(model, lora_config(config))
    model.train()
    recompute(model, checkpointing)
    scorer = make_scorer(model, config.attention)
    pairs = [Pair(*(np.arange(3, 3 + n).tolist() for n in lengths)) for _ in range(count)]
    batch = scorer.collate(pairs)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss, _ = orpo_loss(scorer.score(model, batch), 1.0, "additive", count, count * lengths[1])
        loss.backward()
    live = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_one_more_layer_costs_what_the_third_does() -> None:
    """The whole model traced at once agrees with what two shallow ones foretell."""
    from orpo_dist.planning.trace import micro_batch_bytes

    hf_config = small_llama(9)
    for precision in ("none", "bf16"):
        for checkpointing in (False, True):
            config = ORPOConfig(mixed_precision=precision)
            estimator = Estimator(hf_config, config, Machine(8, 80), (40, 30, 20))
            whole = micro_batch_bytes(
                hf_config, config, Method(), precision, [(40, 30, 20)] * 4,
                checkpointing=checkpointing, gpu=80 * 2**30,
            )  # fmt: skip
            found = estimator.activations(Method(), False, checkpointing, 4)
            assert found == pytest.approx(max(whole), rel=0.02)


@pytest.mark.parametrize("cap", [None, 30.0])
def test_the_head_on_a_gpu_is_planned_as_it_runs_there(
    cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel, in chunks by the card's memory; without it with copies of each chunk."""
    from transformers import Gemma2Config

    from orpo_dist.planning.trace import PlannedGpu, micro_batch_bytes
    from orpo_dist.scoring.head import chunk_tokens

    hf_config = Gemma2Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, vocab_size=262_144, final_logit_softcapping=cap,
    )  # fmt: skip
    config, lengths = ORPOConfig(), [(10, 400, 400)] * 2

    def peak(card: int) -> float:
        """Bytes in those of one chunk's bf16 logits, less what the chunks have nothing to do with.

        Most of the rest are embeddings, cast: 262,144 words of 16 numbers, at 2 bytes.
        """
        found = micro_batch_bytes(hf_config, config, Method(), "bf16", lengths, gpu=card)
        return max(found) / (2 * 262_144)

    small, large = 16 * 2**30, 64 * 2**30
    assert chunk_tokens(262_144, small, 2) == 512  # of 1,600
    assert chunk_tokens(262_144, large, 2) == 2048
    few, all_at_once = peak(small), peak(large)
    assert all_at_once - few == pytest.approx(1600 - 512, rel=0.05)
    assert few == pytest.approx(512, abs=120)  # the logits themselves, and nothing of their size
    monkeypatch.setattr(PlannedGpu, "fuses_head", lambda *_: False)
    monkeypatch.setattr("orpo_dist.scoring.head.logit_bytes", lambda *_: 2)  # the same chunks
    assert peak(small) > 512 * (3 if cap is None else 5)
