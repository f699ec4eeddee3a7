"""Steps made ahead of their use: by a thread, by a worker, or not at all, they are the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import orpo_dist.training.trainer
from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.batching.loader import Ahead, LoadedStep, StepDataset, StepSampler, make_plan
from orpo_dist.training.arguments import resolve


def test_the_next_one_is_made_while_the_present_one_is_used() -> None:
    begun, threads = threading.Event(), set()

    def work(item: str) -> Any:
        threads.add(threading.current_thread())
        if item == "second":
            begun.set()
        return item.upper()

    prepared: list[int] = []
    ahead = Ahead(work, lambda: prepared.append(1))
    assert ahead("first", "second") == "FIRST"
    assert begun.wait(10)  # though nobody has asked for it yet
    assert ahead("second", None) == "SECOND"
    assert prepared == [1] and len(threads) == 1
    assert threading.current_thread() not in threads


def test_skipped_ones_are_not_used() -> None:
    ahead = Ahead(lambda item: item)
    assert [ahead(*pair) for pair in (("a", "b"), ("c", "d"), ("d", None))] == ["a", "c", "d"]


def test_an_error_is_raised_to_whoever_asks_for_that_item() -> None:
    def work(item: int) -> Any:
        if item == 2:
            raise ValueError("pair 2 is broken")
        return item

    ahead = Ahead(work)
    assert ahead(1, 2) == 1
    with pytest.raises(ValueError, match="pair 2 is broken"):
        ahead(2, 3)
    assert ahead(3, None) == 3


def test_a_sampler_tells_what_comes_next() -> None:
    steps: Any = ["a", "b", "c"]
    sampler = StepSampler(lambda: steps, 3)
    assert list(sampler) == [[("a", "b")], [("b", "c")], [("c", None)]]
    assert list(StepSampler(list, 0)) == []


@pytest.fixture
def in_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a GPU would be asked for, where batches are made ahead as on one."""
    asked: list[str] = []

    def pinned(step: LoadedStep) -> LoadedStep:
        asked.append(threading.current_thread().name)
        return step

    def buffer(size: int, pinned: bool) -> tuple[np.ndarray, torch.Tensor]:
        buffers.append((threading.current_thread().name.rstrip("0123456789"), pinned))
        held = torch.full((size,), 255, dtype=torch.uint8)  # whatever was there
        return held.numpy(), held

    buffers: list[tuple[str, bool]] = []
    plain = orpo_dist.training.trainer.step_loader
    monkeypatch.setattr("orpo_dist.scoring.parcel._buffer", buffer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(str(device)))
    monkeypatch.setattr(LoadedStep, "pin_memory", pinned)
    monkeypatch.setattr(
        orpo_dist.training.trainer,
        "step_loader",
        lambda pairs, scorer, plan, steps, _, workers: plain(
            pairs, scorer, plan, steps, torch.device("cuda", 1), workers
        ),
    )
    yield asked
    in_threads = {pinned for name, pinned in buffers if name == "collate_"}
    assert in_threads == {True}  # made there, not copied there


def losses(folder: Path, model_dir: Path, rows: Any, resume: Any = None, **changes: Any) -> Any:
    config = ORPOConfig(
        project_name=str(folder), max_steps=7, batch_size=2, gradient_accumulation=2, lr=1e-2,
        logging_steps=1, save_strategy="steps", save_steps=2, save_total_limit=9, log="none",
        **changes,
    )  # fmt: skip
    trainer = ORPOTrainer(str(model_dir), config, rows[:20], rows[20:26])
    trainer.train(resume_from_checkpoint=resume)
    logged = [entry["loss/orpo"] for entry in trainer.state.log_history if "loss/orpo" in entry]
    return logged, trainer.evaluate()["eval_loss"]


def test_training_is_the_same_with_a_thread_and_with_a_worker(
    tiny_model_dir: Path, demo_rows: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plain = losses(tmp_path / "plain", tiny_model_dir, demo_rows)
    worker = {"trainer_args": {"dataloader_num_workers": 1}}
    assert losses(tmp_path / "worker", tiny_model_dir, demo_rows, **worker) == plain
    asked = request.getfixturevalue("in_thread")
    assert losses(tmp_path / "thread", tiny_model_dir, demo_rows) == plain
    made = [name for name in asked if name != "cuda:1"]
    assert "cuda:1" in asked and {name.rstrip("0123456789") for name in made} == {"collate_"}
    # In the middle of an epoch of five steps: the two that are skipped are not made.
    asked.clear()
    checkpoint = tmp_path / "thread" / "checkpoint-2"
    again = losses(tmp_path / "again", tiny_model_dir, demo_rows, checkpoint)
    assert again[0][-5:] == plain[0][-5:] and again[1] == plain[1]
    assert len([name for name in asked if name != "cuda:1"]) == len(made) - 2


def test_a_broken_pair_stops_training_with_its_own_message(
    tiny_model_dir: Path, demo_rows: Any, tmp_path: Path, in_thread: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = StepDataset._load

    def broken(self: StepDataset, step: Any) -> LoadedStep:
        if len(in_thread) > 3:
            raise RuntimeError("tokens.npy: cannot be read")
        return plain(self, step)

    monkeypatch.setattr(StepDataset, "_load", broken)
    with pytest.raises(RuntimeError, match=r"tokens\.npy: cannot be read"):
        losses(tmp_path, tiny_model_dir, demo_rows)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 16])
def test_a_global_batch_is_kept_on_any_number_of_processes(world: int) -> None:
    """Also where it does not divide: a run may go on on fewer machines than it began on."""
    lengths = np.full((21, 3), 7, dtype=np.int32)
    pairs: Any = SimpleNamespace(lengths=lengths, source_ids=np.zeros(21, int), difficulty=None)
    config = ORPOConfig(global_batch_size=8, batch_size=2, max_tokens_per_microbatch=None)
    config = resolve(config, has_eval=False, world_size=world)
    plan = make_plan(config, pairs, world, hidden_size=64, padded=False)
    assert (plan.global_batch, plan.steps_per_epoch) == (8, 3)
    steps = [list(plan.epoch(0, rank)) for rank in range(world)]
    seen = [i for rank in steps for step in rank for m in step.micro_batches for i in m if i >= 0]
    assert sorted(seen) == list(range(21))
