"""Every form of recomputation: the same numbers to the last digit, and what it really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from orpo_dist.base.types import Pair, UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.models.adapters import add_adapter, lora_config
from orpo_dist.models.recomputing import (
    FORMS,
    Away,
    Form,
    every,
    forms_of,
    numbered_layers,
    recompute,
    share,
)
from orpo_dist.scoring.objective import orpo_loss
from orpo_dist.scoring.scorer import make_scorer

LAYERS = 5
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 120, "head_dim": 8,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=8),  # windows in its masks
}
PAIRS = [Pair([*range(3, 23)], [*range(5, 35)], [*range(9, 20)]), Pair([4, 7], [8, 9, 3], [11, 2])]


def model_of(family: str = "llama", peft: bool = False) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    if peft:
        model = add_adapter(model, lora_config(ORPOConfig(peft=True)))
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # begins at zero, behind which nothing is to be seen
                torch.nn.init.normal_(weight, std=0.1)
    return model.train()


def step(model: Any, attention: str, autocast: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of two pairs."""
    scorer = make_scorer(model, attention)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = scorer.score(model, scorer.collate(PAIRS))
    loss, _ = orpo_loss(scores, 1.0, "additive", 2, 33)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize(
    ("family", "peft", "autocast"),
    [("llama", False, False), ("llama", True, True), ("gemma3", False, True)],
)
def test_not_a_digit_differs(
    form: Form, attention: str, family: str, peft: bool, autocast: bool
) -> None:
    expected = step(model_of(family, peft), attention, autocast)
    model = model_of(family, peft)
    recompute(model, form)
    found = step(model, attention, autocast)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


class Counting(TorchDispatchMode):
    """How often attention and products run."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.attention += "scaled_dot_product" in name and "backward" not in name
        self.products += name in ("aten::mm", "aten::addmm")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_what_runs_again(attention: str) -> None:
    counts = {}
    for form in FORMS:
        model = model_of()
        recompute(model, form)
        scorer = make_scorer(model, attention)
        batch = scorer.collate(PAIRS)
        with Counting() as counting:
            orpo_loss(scorer.score(model, batch), 1.0, "additive", 2, 33)[0].backward()
        counts[form] = counting.attention, counting.products
    calls, products = counts[False]
    a_layer = 6  # products of its linear maps, but for the last, which no gradient needs again
    each = calls // LAYERS
    again = {form: (n - calls, (m - products) / a_layer) for form, (n, m) in counts.items()}
    assert again == {
        False: (0, 0), "every:4": (2 * each, 2), "every:2": (3 * each, 3),
        "keep_attention": (0, LAYERS), True: (LAYERS * each, LAYERS),
    }  # fmt: skip


def test_the_share_that_runs_again() -> None:
    assert [share(form, 32) for form in FORMS] == [0, 0.25, 0.5, 1, 1]
    assert share("every:3", 4) == 0.5  # the first and the last
    assert [every(form) for form in (False, True, "every:3", "keep_attention")] == [0, 1, 3, 1]


def test_layers_that_only_go_together() -> None:
    """Code of others may recompute in a loop of its own, all layers or none."""
    model = model_of()
    for _, layer in numbered_layers(model):
        layer.__class__ = type("Plain", (torch.nn.Module,), {"gradient_checkpointing": False})
    assert forms_of(model) == (False, "keep_attention", True)
    with pytest.raises(UserError, match=r"every:2: LlamaForCausalLM recomputes all of its layers"):
        recompute(model, "every:2")


class Elsewhere(Away):
    """Counts what goes away, to a place on the same device."""

    gone = 0

    def put(self, tensor: Tensor) -> Any:
        self.gone += tensor.nbytes
        return (tensor.clone(),)

    def fetch(self, held: Any) -> Tensor:
        return held[0]


@pytest.mark.parametrize("form", FORMS[1:])
def test_what_layers_begin_with_goes_away(form: Form) -> None:
    """And nothing else: one hidden state a recomputed layer, no weight."""
    expected = step(model_of(), "packed")
    model, away = model_of(), Elsewhere()
    recompute(model, form, away)
    found = step(model, "packed")
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    tokens = sum(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in PAIRS)
    assert away.gone == round(share(form, LAYERS) * LAYERS) * tokens * 32 * 4


def test_small_tensors_and_those_of_the_host_stay() -> None:
    away, tensor = Away(), torch.ones(4)
    assert away.fetch(away.put(tensor)) is tensor
