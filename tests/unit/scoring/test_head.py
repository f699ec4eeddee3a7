"""Log-probs from logits, in place of a softmax over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import orpo_dist.scoring.head
from orpo_dist.engines.allocator import keep_freed_memory
from orpo_dist.scoring import hardware
from orpo_dist.scoring.finish import Finish
from orpo_dist.scoring.hardware import HERE, Hardware
from orpo_dist.scoring.head import _TargetLogps, chunk_tokens, logit_bytes, target_logps
from orpo_dist.scoring.scorer import Scorer, make_scorer
from tests.invariance.test_packed import scored, small_model


def both(
    weight: torch.Tensor, hidden: torch.Tensor, targets: torch.Tensor, grad: torch.Tensor
) -> list[list[torch.Tensor]]:
    """Log-probs and gradients: ours, and cross_entropy's."""
    found = []
    for score in (
        lambda logits: _TargetLogps.apply(logits, targets),
        lambda logits: -F.cross_entropy(logits.float(), targets, reduction="none"),
    ):
        w, h = weight.clone().requires_grad_(), hidden.clone().requires_grad_()
        logps = score(h @ w.T)
        found.append([logps, *torch.autograd.grad(logps, (w, h), grad.to(logps.dtype))])
    return found


@pytest.mark.parametrize("rows_in_a_block", [1, 3, 1000])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_equal_to_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, rows_in_a_block: int, scale: float
) -> None:
    monkeypatch.setattr(hardware, "BLOCK_BYTES", 4 * 50 * rows_in_a_block)
    draw = torch.Generator().manual_seed(1)
    weight, hidden = torch.randn(50, 8, generator=draw), torch.randn(20, 8, generator=draw) * scale
    targets = torch.randint(0, 50, (20,), generator=draw)
    grad = torch.randn(20, generator=draw)
    ours, theirs = both(weight, hidden, targets, grad)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5 * scale, rtol=1e-5)


def test_bf16_logits_are_normalised_in_fp32() -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(50, 8, generator=draw).bfloat16()
    hidden = torch.randn(20, 8, generator=draw).bfloat16()
    targets = torch.randint(0, 50, (20,), generator=draw)
    ours, theirs = both(weight, hidden, targets, torch.ones(20))
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-6, rtol=1e-6)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(mine, other)


def test_a_second_backward_is_an_error_and_not_a_wrong_gradient() -> None:
    logits = torch.randn(4, 9, requires_grad=True)
    logps = _TargetLogps.apply(logits * 1.0, torch.arange(4)).sum()
    logps.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logps.backward()


class Fusing(Hardware):
    """A CPU with a stand-in for the kernel, which like one writes behind autograd's back."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def fuses_head(self, *_: object) -> bool:
        return True

    def head_logps(
        self, logits: torch.Tensor, targets: torch.Tensor, finish: Finish
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert logits.stride(1) == 1
        self.rows.append(len(logits))
        finished = finish(logits.float())
        peak = finished.amax(1)
        sums = torch.stack([peak, (finished - peak[:, None]).logsumexp(1)], 1)
        return finished.gather(1, targets[:, None])[:, 0] - sums[:, 0] - sums[:, 1], sums

    def head_gradient(
        self, logits: torch.Tensor, targets: torch.Tensor, sums: torch.Tensor, grad: torch.Tensor,
        finish: Finish,
    ) -> None:  # fmt: skip
        assert grad.is_contiguous()
        with torch.enable_grad():
            leaf = logits.float().detach().requires_grad_()
            finished = finish(leaf * 1.0)
            share = (finished.detach() - sums[:, :1] - sums[:, 1:]).exp()
            slope = F.one_hot(targets, logits.shape[1]) - share
            (found,) = torch.autograd.grad(finished, leaf, slope * grad[:, None])
        logits.detach().numpy()[:] = found.numpy()


@pytest.mark.parametrize("family", ["llama tied", "gemma2", "cohere", "granite"])
@pytest.mark.parametrize("chunk", [5, None])
def test_models_learn_the_same_through_the_kernel(
    family: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head hands it raw logits, finish and gradients, in chunks and at once."""
    if chunk is not None:
        monkeypatch.setattr(orpo_dist.scoring.head, "LOGITS_BYTES", 0)
        monkeypatch.setattr(orpo_dist.scoring.head, "MIN_CHUNK", chunk)
    model, fusing = small_model(family), Fusing()
    assert make_scorer(model, "packed").packed
    (scores, gradients), (expected, expected_gradients) = (
        scored(model, Scorer(True, hardware=where)) for where in (fusing, HERE)
    )
    assert sum(fusing.rows) == 37 * (1 if chunk is None else 2)  # recomputed in the backward pass
    assert chunk is None or max(fusing.rows) == chunk
    for name, value in expected.items():
        torch.testing.assert_close(scores[name], value, atol=1e-6, rtol=1e-6)
    for name, value in expected_gradients.items():
        torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-5)


def test_a_second_backward_through_the_kernel_is_an_error_too() -> None:
    logits = torch.randn(4, 9, requires_grad=True)
    logps = target_logps(logits * 1.0, torch.arange(4), Finish(), Fusing()).sum()
    logps.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logps.backward()


def test_columns_that_lie_apart_are_laid_together() -> None:
    values, targets = torch.randn(9, 4), torch.arange(4)
    found = []
    for where in (Fusing(), HERE):
        leaf = values.clone().requires_grad_()
        logps = target_logps((leaf * 1.0).T, targets, Finish(cap=2.0), where)
        found.append([logps, *torch.autograd.grad(logps.sum(), leaf)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)


GIB = 2**30


@pytest.mark.parametrize(
    ("memory", "words", "logit", "tokens"),
    [
        (80 * GIB, 131_072, 2, 5120),  # 1.25 GiB of bf16, by the kernel
        (80 * GIB, 131_072, 10, 1024),  # the same without it
        (24 * GIB, 131_072, 2, 1536),
        (24 * GIB, 49_152, 4, 2048),
        (4 * GIB, 262_144, 2, 256),  # never less than 128 MiB
        (2 * GIB, 262_144, 12, 256),  # nor than 256 tokens
        (288 * GIB, 131_072, 2, 8192),  # never more than 2 GiB
    ],
)
def test_chunks_on_a_gpu_by_its_memory(memory: int, words: int, logit: int, tokens: int) -> None:
    assert chunk_tokens(words, memory, logit) == tokens
    assert chunk_tokens(words, memory, logit) % 256 == 0


def test_chunks_on_a_cpu() -> None:
    assert chunk_tokens(131_072) == 512
    assert chunk_tokens(2_000_000) == 128
    assert HERE.memory(torch.device("cpu")) is None


def test_bytes_of_a_logit() -> None:
    assert logit_bytes(torch.bfloat16, True) == 2
    assert logit_bytes(torch.bfloat16, False) == 2 + 8
    assert logit_bytes(torch.float32, True) == 4


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    assert keep_freed_memory() in (True, False)
    assert keep_freed_memory() == keep_freed_memory()
