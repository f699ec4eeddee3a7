"""The proof of the head's kernel, on a CPU with right and wrong stand-ins for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from orpo_dist.scoring import hardware, head_proof, scorer
from orpo_dist.scoring.finish import Finish
from orpo_dist.scoring.hardware import Hardware
from orpo_dist.scoring.head_proof import differs, proved
from tests.invariance.test_packed import small_model
from tests.unit.scoring.test_head import Fusing

CPU = torch.device("cpu")
FINISHES = [Finish(), Finish(times=0.25), Finish(over=4.0), Finish(cap=30.0), Finish(2.0, 4.0, 5.0)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    proved.cache_clear()
    yield
    proved.cache_clear()


class Right(Fusing):
    """bf16 has no place in numpy, by which the stand-in writes."""

    def head_gradient(self, logits: Any, targets: Any, sums: Any, grad: Any, finish: Any) -> None:
        exact = logits.float()
        super().head_gradient(exact, targets, sums, grad, finish)
        logits.copy_(exact)


class CapForgotten(Right):
    def head_logps(self, logits: Any, targets: Any, finish: Finish) -> Any:
        return super().head_logps(logits, targets, Finish(finish.times, finish.over))


class SlopeForgotten(Right):
    """Of the cap, or of the scale."""

    def head_gradient(self, logits: Any, targets: Any, sums: Any, grad: Any, finish: Any) -> None:
        logits.copy_(finish(logits.double()))
        super().head_gradient(logits, targets, sums, grad, Finish())


class LastWordForgotten(Right):
    def head_logps(self, logits: Any, targets: Any, finish: Finish) -> Any:
        logits = logits.clone()
        logits[:, -1] = -1e4
        return super().head_logps(logits, targets, finish)


class TargetForgotten(Right):
    def head_gradient(self, logits: Any, targets: Any, sums: Any, grad: Any, finish: Any) -> None:
        super().head_gradient(logits, (targets + 1) % logits.shape[1], sums, grad, finish)


class NoNumber(Right):
    def head_logps(self, logits: Any, targets: Any, finish: Finish) -> Any:
        logps, sums = super().head_logps(logits, targets, finish)
        return logps.where(torch.arange(len(logps)) > 0, torch.nan), sums


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", [5, 1000, 131_072])
def test_a_right_one_passes(finish: Finish, dtype: torch.dtype, words: int) -> None:
    reason, forward, backward = differs(CPU, dtype, words, finish, Right())
    assert reason is None
    assert forward < 1e-6
    assert backward < torch.finfo(dtype).eps + 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("wrong", "finish"),
    [
        (CapForgotten, Finish(cap=30.0)),
        (SlopeForgotten, Finish(cap=30.0)),
        (SlopeForgotten, Finish(over=4.0)),
        (LastWordForgotten, Finish()),
        (TargetForgotten, Finish()),
        (NoNumber, Finish()),
    ],
)
def test_a_wrong_one_does_not(
    wrong: Callable[[], Hardware], finish: Finish, dtype: torch.dtype
) -> None:
    reason, *_ = differs(CPU, dtype, 32_000, finish, wrong())
    assert reason is not None
    assert reason.startswith("computes something else here: log-probs ")


def stand_in(monkeypatch: pytest.MonkeyPatch, kernel: Hardware) -> None:
    for name in ("head_logps", "head_gradient"):
        monkeypatch.setattr(Hardware, name, lambda _, *a, n=name: getattr(kernel, n)(*a))


def test_what_is_used_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orpo_dist")
    right = Right()
    stand_in(monkeypatch, right)
    assert proved(CPU, torch.bfloat16, 300, Finish()) and proved(CPU, torch.bfloat16, 300, Finish())
    (said,) = caplog.messages
    assert said.startswith("head: one fused kernel (bfloat16, 300 words; beside the plain version")
    assert len(right.rows) == 1
    assert proved(CPU, torch.bfloat16, 300, Finish(cap=30.0))  # another kernel
    assert len(right.rows) == 2


def test_a_wrong_one_is_warned_of_with_figures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(monkeypatch, TargetForgotten())
    assert not proved(CPU, torch.float32, 300, Finish())
    assert not proved(CPU, torch.float32, 300, Finish())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "computes something else here: log-probs" in record.message
    assert "(float32, 300 words)" in record.message


def test_one_that_does_not_run_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(Hardware, "head_logps", absent)
    assert not proved(CPU, torch.float32, 300, Finish())
    (said,) = caplog.messages
    assert "does not run here (ModuleNotFoundError: No module named 'triton')" in said


def test_lack_of_memory_says_nothing_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for a token budget tries again with less."""

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(Hardware, "head_logps", full)
        with pytest.raises(torch.OutOfMemoryError):
            proved(CPU, torch.float32, 300, Finish())
    stand_in(monkeypatch, Right())
    assert proved(CPU, torch.float32, 300, Finish())


def test_inside_a_checkpoint_and_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it saves is not counted among what is recomputed; and gradients are on within it."""
    stand_in(monkeypatch, Right())

    def doubled(x: torch.Tensor) -> torch.Tensor:
        assert proved(CPU, torch.float32, 300, Finish())
        return x.sin() * 2

    leaf = torch.ones(3, requires_grad=True)
    checkpoint(doubled, leaf, use_reentrant=False).sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * torch.ones(3).cos())
    with torch.inference_mode():
        assert proved(CPU, torch.float32, 301, Finish())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert proved(CPU, torch.float32, 302, Finish())


def test_hardware_asks_it_for_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(head_proof, "proved", lambda *given: asked.append(given) or True)
    gpu = torch.device("cuda", 0)
    assert not hardware.HERE.fuses_head(CPU, torch.float32, 300, Finish())
    assert not hardware.HERE.fuses_head(gpu, torch.float64, 300, Finish())
    assert asked == []
    assert hardware.HERE.fuses_head(gpu, torch.bfloat16, 300, Finish())
    assert asked == [(gpu, torch.bfloat16, 300, Finish())]


def test_it_is_made_when_a_model_is_about_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the precision that it will have there, for its own words and cap."""
    asked: list[Any] = []

    def fuses_head(_: Hardware, *given: Any) -> bool:
        asked.append(given)
        return False

    monkeypatch.setattr(Hardware, "fuses_head", fuses_head)
    monkeypatch.setattr(scorer, "kernel_differs", lambda *_: None)
    model, gpu = small_model("gemma2"), torch.device("cuda", 0)
    cap = model.config.final_logit_softcapping
    scorer.make_scorer(model, "packed", device=gpu, dtype=torch.bfloat16)
    assert asked[-1] == (gpu, torch.bfloat16, model.config.vocab_size, Finish(cap=cap))
    scorer.make_scorer(model, "packed", device=gpu)
    assert asked[-1][1] == torch.float32
    asked.clear()
    scorer.make_scorer(model, "packed", device=CPU)
    assert all(device.type == "cpu" for device, *_ in asked)
