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

import orpo_dist.scoring.attention
import orpo_dist.scoring.varlen
from orpo_dist.scoring.attention import packed_attention
from orpo_dist.scoring.hardware import Hardware
from orpo_dist.scoring.masks import PackedMask
from orpo_dist.scoring.scorer import Scorer, make_scorer
from orpo_dist.scoring.varlen import varlen_attention, varlen_layout
from tests.invariance.test_packed import small_model, some_pairs

SEGMENTS = ((11, 7, 9), (3, 14, 2), (1, 2, 3), (5, 1, 1))
GPU = torch.cuda.is_available()


def slow_kernel(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor,
    max_q: int, max_k: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
    return_aux: Any = None,
) -> Any:  # fmt: skip
    """One sequence after another, one score matrix each."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    groups = query.shape[1] // key.shape[1]
    outputs, sums = [], []
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
        scores = scores.masked_fill(hidden, -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        sums.append(scores.logsumexp(-1))
        begin_q, begin_k = end_q, end_k
    return (torch.cat(outputs), torch.cat(sums, 1)) if return_aux else torch.cat(outputs)


def slow_backward(
    _: Hardware,
    grad: Tensor,
    saved: tuple[Tensor, ...],
    places: tuple[Any, ...],
    scale: float,
    window: tuple[int, int],
) -> tuple[Tensor, ...]:
    """What flash attention does backward: all it knows of the softmax is output and log-sum-exp."""
    query, key, value, output, sums = saved
    slopes = [torch.zeros_like(x) for x in (query, key, value)]
    groups = query.shape[1] // key.shape[1]
    starts = zip(*(cumulated.tolist() for cumulated in places[:2]), strict=True)
    begin_q, begin_k = next(starts)
    for end_q, end_k in starts:
        asked, seen = slice(begin_q, end_q), slice(begin_k, end_k)
        k, v = (x[seen].repeat_interleave(groups, 1) for x in (key, value))
        distance = torch.arange(len(k) - (end_q - begin_q), len(k))[:, None] - torch.arange(len(k))
        hidden = (distance < 0) | ((distance > window[0]) if window[0] >= 0 else False)
        scores = torch.einsum("qhd,khd->hqk", query[asked], k) * scale
        shares = (scores - sums[:, asked, None]).exp().masked_fill(hidden, 0)
        along = (grad[asked] * output[asked]).sum(-1).T[..., None]
        steep = shares * (torch.einsum("qhd,khd->hqk", grad[asked], v) - along) * scale
        slopes[0][asked] = torch.einsum("hqk,khd->qhd", steep, k)
        for slope, whole in (
            (slopes[1], torch.einsum("hqk,qhd->khd", steep, query[asked])),
            (slopes[2], torch.einsum("hqk,qhd->khd", shares, grad[asked])),
        ):
            slope[seen] = whole.unflatten(1, (-1, groups)).sum(2)
        begin_q, begin_k = end_q, end_k
    return tuple(slopes)


@pytest.fixture(autouse=not GPU)
def kernel_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", slow_kernel)
    monkeypatch.setattr(Hardware, "attend_backward", slow_backward)
    monkeypatch.setattr(Hardware, "runs_kernel", lambda self, query, softcap: softcap is None)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_outputs_and_gradients_equal_sdpa(
    key_heads: int, window: int | None, with_sinks: bool
) -> None:
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
    total = sum(map(sum, SEGMENTS))
    leaves = [
        torch.randn(1, heads, total, 16, device=device, dtype=dtype, requires_grad=True)
        for heads in (4, key_heads, key_heads)
    ]
    sinks = torch.linspace(-2, 3, 4, device=device).requires_grad_() if with_sinks else None
    upstream = torch.randn(1, total, 4, 16, device=device, dtype=dtype)
    layout = varlen_layout(SEGMENTS).to(device)
    found = []
    for output in (
        varlen_attention(*leaves, layout, 0.3, window, sinks),
        packed_attention(*leaves, PackedMask(SEGMENTS, window=window), 0.3, None, sinks),
    ):
        wanted = leaves if sinks is None else [*leaves, sinks]
        found.append([output, *torch.autograd.grad(output, wanted, upstream)])
    tolerance = 2e-2 if GPU else 1e-5
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(GPU, reason="fp32 models take SDPA on a GPU")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "gpt2"])
def test_models_score_the_same_through_it(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    model, pairs = small_model(family), some_pairs()
    assert make_scorer(model, "packed").packed
    taken: list[int] = []
    through = orpo_dist.scoring.attention.varlen_attention
    monkeypatch.setattr(
        orpo_dist.scoring.attention, "varlen_attention", lambda *a: taken.append(1) or through(*a)
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
