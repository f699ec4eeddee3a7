"""Between two micro-batches the host never waits for a value of the device.

Every read is a synchronisation on a GPU: it empties the queue of kernels. Counted on a CPU, where
the same operations run.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.scoring.hardware import Hardware
from orpo_dist.scoring.metrics import RunningMeans, step_means
from orpo_dist.scoring.objective import orpo_loss
from orpo_dist.scoring.scorer import Scorer, make_scorer
from tests.invariance.test_packed import FAMILIES, small_model, some_pairs

# Operations whose result, or its shape, depends on values.
READS = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "bincount",
    "unique_consecutive", "unique_dim", "_unique2", "repeat_interleave",
}  # fmt: skip


class HostReads(TorchDispatchMode):
    """Where values were read, one line of code each."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        by_mask = name.lstrip("_").startswith("index") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for indices in args[1:]
            if isinstance(indices, list | tuple)
            for index in indices
        )
        if by_mask or name in READS:
            calls = traceback.extract_stack()[:-1]
            ours = [call for call in calls if "/torch/" not in call.filename] or calls
            self.places.append(f"{name} at {ours[-1].filename}:{ours[-1].lineno}")
        return func(*args, **(kwargs or {}))


def reads(model: Any, scorer: Scorer) -> list[str]:
    """Of one micro-batch: forward, loss, backward and metrics."""
    batch, means = scorer.collate(some_pairs()), RunningMeans(("a", "b"))
    with HostReads() as found:
        scores = scorer.score(model, batch)
        loss, metrics = orpo_loss(scores, 0.1, "additive", 8, 400)
        loss.backward()
        means.add(step_means(loss, metrics, 0.1, 8, 400), scores, torch.tensor([0, 1, 0]))
    return found.places


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_micro_batches_read_nothing(family: str) -> None:
    # Before transformers 5.23 OPT draws on the host, in training, which layers to drop.
    model = small_model(family).train(family != "opt")
    assert reads(model, make_scorer(model, "packed")) == []


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_with_gradient_checkpointing(family: str) -> None:
    model = small_model(family)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert reads(model.train(), make_scorer(model, "packed")) == []


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_through_the_variable_length_kernel(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        return query + (key.sum() + value.sum())

    model = small_model(family).train()
    assert make_scorer(model, "packed").packed
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    monkeypatch.setattr(Hardware, "runs_kernel", lambda *_: True)
    assert reads(model, Scorer(True, varlen=True)) == []


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_padded_micro_batches_read_what_transformers_reads(family: str) -> None:
    """It looks whether the mask hides anything; scoring itself looks at nothing."""
    places = reads(small_model(family).train(), Scorer(False))
    assert all("masking_utils.py" in place for place in places)


def test_a_training_step_reads_nothing(
    tiny_model: Any, tokenizer: Any, demo_rows: Any, tmp_path: Path
) -> None:
    config = ORPOConfig(
        project_name=str(tmp_path), batch_size=2, gradient_accumulation=2, log="none",
        orpo_alpha_schedule="linear", attention="packed",
    )  # fmt: skip
    trainer = ORPOTrainer(tiny_model, config, demo_rows[:8], processing_class=tokenizer)
    step = next(iter(trainer.get_train_dataloader()))
    assert len(step.batches) == 2
    with HostReads() as found:
        loss = trainer.training_step(trainer.model, step)
    assert found.places == []
    assert loss.item() > 0


def test_reads_are_seen() -> None:
    values = torch.arange(4.0)
    with HostReads() as found:
        _ = values.sum().item(), values[values > 1], bool((values > 1).all())
        values[values > 2] = 0
    assert len(found.places) == 4
