"""Memory that runs out in mid-run: the step is done again in smaller pieces, and stays the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orpo_dist import ORPOConfig, ORPOTrainer, UserError
from orpo_dist.batching.token_budget import halved
from orpo_dist.engines.runtime import Runtime
from orpo_dist.planning import budget as planned


def trainer_of(model: Any, rows: Any, folder: Path, **settings: Any) -> ORPOTrainer:
    config = ORPOConfig(
        project_name=str(folder), log="none", batch_size=8, gradient_accumulation=2, max_steps=3,
        max_tokens_per_microbatch=2000, logging_steps=1, save_strategy="no", **settings,
    )  # fmt: skip
    return ORPOTrainer(str(model), config, rows)


def scarce(trainer: ORPOTrainer, tokens: int) -> list[int]:
    """Let this trainer have memory for so many tokens only; the sizes of what was tried."""
    tried: list[int] = []
    plain = trainer.score

    def score(model: Any, batch: Any) -> Any:
        tried.append(batch.input_ids.numel())
        scores = plain(model, batch)
        if tried[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")
        return scores

    trainer.score = score  # type: ignore[method-assign]
    return tried


def losses(trainer: ORPOTrainer) -> list[float]:
    trainer.train()
    return [entry["loss/orpo"] for entry in trainer.state.log_history if "loss/orpo" in entry]


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_a_step_is_repeated_in_smaller_pieces(
    attention: str, tiny_model_dir: Path, demo_rows: Any, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.WARNING, logger="orpo_dist")
    rows = demo_rows[:48]
    expected = losses(trainer_of(tiny_model_dir, rows, tmp_path / "a", attention=attention))
    trainer = trainer_of(tiny_model_dir, rows, tmp_path / "b", attention=attention)
    tried = scarce(trainer, 700)
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)
    failed = [size for size in tried if size > 700]
    assert failed and trainer.most_tokens is not None and trainer.most_tokens <= 1000
    assert tried[-1] <= trainer.most_tokens  # and later steps do not try again
    assert f"micro-batch of {failed[0]} tokens: step repeated" in caplog.text


def test_a_pair_that_does_not_fit_ends_in_a_sentence(
    tiny_model_dir: Path, demo_rows: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny_model_dir, demo_rows[:16], tmp_path)
    scarce(trainer, 10)
    with pytest.raises(UserError, match=r"one pair of \d+ tokens .*lower max_prompt_length"):
        trainer.train()


@pytest.mark.parametrize("engine", ["deepspeed", "fsdp", "the last one of ddp"])
def test_where_others_wait_the_number_to_set_is_said(
    engine: str, tiny_model_dir: Path, demo_rows: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny_model_dir, demo_rows[:32], tmp_path)
    step = next(iter(trainer.get_train_dataloader()))
    trainer._at = len(step.batches) - 1
    if engine == "the last one of ddp":
        object.__setattr__(trainer.args, "distributed_state", None)
        type(trainer.args).world_size, before = property(lambda _: 2), type(trainer.args).world_size
        try:
            with pytest.raises(UserError, match=r"set max_tokens_per_microbatch to \d+"):
                trainer._lower_limit(step, "CUDA out of memory")
        finally:
            type(trainer.args).world_size = before
        return
    setattr(trainer, f"is_{engine}_enabled", True)
    with pytest.raises(UserError, match=r"set max_tokens_per_microbatch to \d+"):
        trainer._lower_limit(step, "CUDA out of memory")


def test_halves_are_even_and_neighbours_stay_together() -> None:
    sizes = np.array([5, 100, 90, 10])
    packed = halved(sizes, False)
    assert packed is not None
    assert sorted(sum(sizes[half]) for half in packed) == [100, 105]
    assert halved(sizes, True) == ([1, 2], [3, 0])
    assert halved(sizes[:1], False) is None


def test_the_trial_checkpoints_as_training_will(
    tiny_model_dir: Path, demo_rows: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny_model_dir, demo_rows[:16], tmp_path, gradient_checkpointing=True)
    assert not trainer.model.is_gradient_checkpointing
    trainer.settle_budget()
    assert trainer.model.is_gradient_checkpointing


def test_a_budget_fills_micro_batches_whatever_the_batch_size(
    tiny_model_dir: Path, demo_rows: Any, tmp_path: Path
) -> None:
    """batch_size × gradient_accumulation pairs make a step; tokens decide how it is cut."""
    settings = {"project_name": str(tmp_path), "log": "none", "batch_size": 1}
    settings |= {"gradient_accumulation": 16}
    cuts = []
    for budget in (None, 2000):
        config = ORPOConfig(**settings, max_tokens_per_microbatch=budget)
        trainer = ORPOTrainer(str(tiny_model_dir), config, demo_rows[:16])
        cuts.append(len(next(iter(trainer.get_train_dataloader())).batches))
    assert cuts[0] == 16 and cuts[1] < 4


def test_sharded_engines_take_the_plans_arithmetic(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orpo_dist.batching.steps import StepPlan
    from orpo_dist.engines.engine import Engine
    from orpo_dist.planning.estimate import Machine

    lengths = np.array([[100, 50, 50]] * 64)
    plan = StepPlan(lengths, lengths[:, 1], global_batch=64, micro_batch=32, world_size=2)
    config = ORPOConfig(batch_size=4, gradient_accumulation=8)
    found = []
    for memory in (1.0, 1.7, 80.0):
        monkeypatch.setattr(
            planned, "machine_of", lambda *_, m=memory: Machine(2, m, per_machine=2)
        )
        here = Runtime(engine=Engine("zero3"))
        found.append(planned.planned_budget(tiny_model, config, plan, here))
    assert found[0] == 200 and found[2] == 32 * 200  # one pair at least; at most a rank's step
    assert found == sorted(found)
