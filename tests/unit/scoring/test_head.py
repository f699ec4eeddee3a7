"""Log-probs from logits, in place of a softmax over the whole vocabulary."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from orpo_dist.engines.allocator import keep_freed_memory
from orpo_dist.scoring import hardware
from orpo_dist.scoring.head import _finished, _TargetLogps


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


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    assert keep_freed_memory() in (True, False)
    assert keep_freed_memory() == keep_freed_memory()


def test_what_families_do_after_the_head() -> None:
    """Cohere multiplies, Granite divides, Gemma caps; in this order where one does several."""
    logits = torch.tensor([[-90.0, 3.0, 60.0]])
    assert torch.equal(_finished(SimpleNamespace(), logits), logits)
    assert torch.equal(_finished(SimpleNamespace(logit_scale=0.25), logits), logits * 0.25)
    assert torch.equal(_finished(SimpleNamespace(logits_scaling=8.0), logits), logits / 8)
    every = SimpleNamespace(logit_scale=0.5, logits_scaling=2.0, final_logit_softcapping=30.0)
    assert torch.equal(_finished(every, logits), torch.tanh(logits / 4 / 30) * 30)
