"""The variable-length route equals SDPA pair by pair; on a CPU with a slow stand-in for the kernel.

The stand-in says what flash attention promises: causal, aligned at the end, with a window. On a
GPU the same tests run the kernel itself.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from torch import Tensor

import orpo_dist.attention
from orpo_dist.attention import packed_attention
from orpo_dist.scoring import Scorer, make_scorer
from orpo_dist.varlen import varlen_attention, varlen_layout
from tests.invariance.test_packed import small_model, some_pairs

SEGMENTS = ((11, 7, 9), (3, 14, 2), (1, 2, 3), (5, 1, 1))
GPU = torch.cuda.is_available()


def slow_kernel(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor,
    max_q: int, max_k: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """One sequence after another, one score matrix each."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    groups = query.shape[1] // key.shape[1]
    outputs = []
    starts = zip(cu_seq_q.tolist(), cu_seq_k.tolist(), strict=True)
    begin_q, begin_k = next(starts)
    for end_q, end_k in starts:
        assert end_q - begin_q <= max_q and end_k - begin_k <= max_k
        q = query[begin_q:end_q]
        k, v = (x[begin_k:end_k].repeat_interleave(groups, 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        row = torch.arange(len(k) - len(q), len(k))[:, None]
        distance = row - torch.arange(len(k))
        left, right = window_size
        hidden = (distance < -right) | ((distance > left) if left >= 0 else False)
        outputs.append(
            torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
        )
        begin_q, begin_k = end_q, end_k
    return torch.cat(outputs)


@pytest.fixture(autouse=not GPU)
def kernel_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", slow_kernel)
    monkeypatch.setattr(orpo_dist.attention, "can_run", lambda query, softcap: softcap is None)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 4])
def test_outputs_and_gradients_equal_sdpa(key_heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
    total = sum(map(sum, SEGMENTS))
    leaves = [
        torch.randn(1, heads, total, 16, device=device, dtype=dtype, requires_grad=True)
        for heads in (4, key_heads, key_heads)
    ]
    upstream = torch.randn(1, total, 4, 16, device=device, dtype=dtype)
    layout = varlen_layout(SEGMENTS).to(device)
    found = []
    for output in (
        varlen_attention(*leaves, layout, 0.3, window),
        packed_attention(*leaves, SEGMENTS, 0.3, None, window),
    ):
        found.append([output, *torch.autograd.grad(output, leaves, upstream)])
    tolerance = 2e-2 if GPU else 1e-5
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(GPU, reason="fp32 models take SDPA on a GPU")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "gpt2"])
def test_models_score_the_same_through_it(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    model, pairs = small_model(family), some_pairs()
    assert make_scorer(model, "packed").packed
    taken: list[int] = []
    through = orpo_dist.attention.varlen_attention
    monkeypatch.setattr(
        orpo_dist.attention, "varlen_attention", lambda *a: taken.append(1) or through(*a)
    )
    found: list[list[Any]] = []
    for scorer in (Scorer(True, varlen=True), Scorer(False)):
        model.zero_grad()
        scores = scorer.score(model, scorer.collate(pairs))
        (scores.chosen_logp.sum() - 2 * scores.rejected_logp.sum()).backward()
        found.append([scores.chosen_logp.detach(), scores.rejected_logp.detach()])
        found[-1] += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(
            mine, other, atol=1e-5 * max(1.0, other.abs().max().item()), rtol=1e-4
        )
    assert bool(taken) == (family != "gemma2")  # which caps softly, and the kernel does not
