"""Compiled layers: nothing compiles anew from step to step, and the numbers stay."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orpo_dist.base.types import Pair, UserError
from orpo_dist.models import compiling
from orpo_dist.models.compiling import compile_layers, forget_compiled, why_not_compile
from orpo_dist.models.recomputing import Form, recompute
from orpo_dist.scoring.objective import orpo_loss
from orpo_dist.scoring.scorer import Scorer, make_scorer
from tests.unit.models.test_recomputing import model_of

CPU = torch.device("cpu")
WARM_UP = 2  # steps: the second one may show a size that the first did not tell apart


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """torch.compile makes its graphs, and runs them without a C++ compiler; its counters."""
    compiled = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compiled)
    yield from fresh_compiler()


def fresh_compiler() -> Iterator[Any]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def some_pairs(draw: np.random.Generator) -> list[Pair]:
    def tokens() -> list[int]:
        return draw.integers(3, 100, draw.integers(2, 40)).tolist()

    return [Pair(tokens(), tokens(), tokens()) for _ in range(draw.integers(2, 5))]


def step(model: Any, scorer: Scorer, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    loss, _ = orpo_loss(scorer.score(model, scorer.collate(pairs)), 1.0, "additive", 2, 33)
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.cat([p.grad.flatten() for p in trained])
    model.zero_grad()
    return loss.detach(), gradient


def held_together(family: str, peft: bool, attention: str, form: Form, steps: int = 6) -> None:
    """Steps of changing lengths beside the same model as it is; after two nothing may compile."""
    model, plain = model_of(family, peft), model_of(family, peft)
    recompute(model, form)
    scorer, own = make_scorer(model, attention), make_scorer(plain, attention)
    compile_layers(model, CPU)
    draw = np.random.default_rng(0)
    for number in range(steps):
        pairs = some_pairs(draw)
        with torch._dynamo.config.patch(error_on_recompile=number >= WARM_UP):
            found = step(model, scorer, pairs)
        expected = step(plain, own, pairs)
        assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-6)
        assert (found[1] - expected[1]).norm() <= 2e-5 * expected[1].norm()


@pytest.mark.parametrize(
    ("family", "peft", "attention", "form"),
    [
        ("llama", False, "packed", False),
        ("llama", True, "packed", "every:2"),
        ("llama", False, "packed", "keep_attention"),
        ("llama", False, "padded", True),
        ("gemma3", False, "packed", True),
    ],
)
def test_nothing_compiles_anew(
    family: str, peft: bool, attention: str, form: Form, graphs: Any
) -> None:
    held_together(family, peft, attention, form)
    assert graphs["stats"]["unique_graphs"] >= 2  # and it was compiled at all


@pytest.mark.slow
def test_as_the_compiler_makes_it() -> None:
    """Through inductor and g++, as a run does."""
    for counters in fresh_compiler():
        held_together("llama", False, "packed", "every:2")
        assert counters["inductor"]


def test_a_list_of_pairs_within_a_graph_would_compile_every_batch(
    graphs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why attention is kept apart; and that the test above would see it."""
    monkeypatch.setattr(compiling, "keep_apart", attention_in_graphs)
    with pytest.raises(torch._dynamo.exc.RecompileError):
        held_together("llama", False, "packed", False)


def attention_in_graphs() -> None:
    from transformers import AttentionInterface

    from orpo_dist.scoring import attention

    for former in attention.FORMER:
        AttentionInterface.register(attention.PREFIX + former, attention._implementation(former))


def test_names_evaluation_and_the_way_back(graphs: Any) -> None:
    model = model_of()
    names = list(model.state_dict())
    scorer = make_scorer(model, "packed")
    compile_layers(model, CPU)
    assert list(model.state_dict()) == names
    graphs.clear()
    model.eval()
    batch = scorer.collate(some_pairs(np.random.default_rng(0)))
    with torch.no_grad():
        scorer.score(model, batch)
    assert not graphs["stats"]  # evaluations run the model's own code
    forget_compiled(model)
    model.train()
    step(model, scorer, some_pairs(np.random.default_rng(0)))
    assert not graphs["stats"]


def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "zero3 gathers weights" in str(why_not_compile("zero3"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert why_not_compile("ddp") == "needs a C++ compiler, and there is no no-such-compiler"
    model = model_of()
    model.is_quantized = True
    with pytest.raises(UserError, match="kernels compile: not with quantised weights"):
        compile_layers(model, CPU)


def test_a_compiler_that_does_not_work_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> None:
            raise RuntimeError("CppCompileError: no header")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"torch.compile does not work here .*no header.*none"):
        compile_layers(model_of(), CPU)
