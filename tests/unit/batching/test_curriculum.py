"""Curriculum: easy to hard, every pair once, the same order on any topology and after a kill."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from orpo_dist import ORPOTrainer, UserError, evaluate_model, train
from orpo_dist.batching.curriculum import PACINGS, Curriculum
from orpo_dist.data import Columns, Encoder, Limits
from orpo_dist.data.prepare import prepare
from orpo_dist.runs.folder import read_metrics
from tests.unit.batching.test_steps import make_plan, pairs_of
from tests.unit.training.test_run import settings
from tests.unit.training.test_trainer import config

Rows = list[dict[str, Any]]


def order(count: int, pacing: str, start: float, seed: int = 0) -> np.ndarray:
    """Ranks of difficulty in training order; pairs and difficulties are shuffled differently."""
    difficulty = np.random.default_rng(99).permutation(count).astype(float)
    curriculum = Curriculum(difficulty, 1, pacing, start)
    arranged = curriculum.arrange(np.arange(count), np.random.default_rng(seed))
    return difficulty[arranged]


@examples(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.sampled_from(sorted(PACINGS)), st.floats(0.01, 1), st.integers(0, 9))
def test_every_pair_once_and_none_before_the_pool_opens(
    count: int, pacing: str, start: float, seed: int
) -> None:
    found = order(count, pacing, start, seed)
    assert sorted(found) == list(range(count))
    for at, rank in enumerate(found):
        share = PACINGS[pacing](at / count, start)
        assert at / count <= share + 1e-9
        assert rank < max(at + 1, np.ceil(share * count))


def test_the_pacings() -> None:
    assert order(50, "linear", 0).tolist() == list(range(50))  # strict
    steps = order(40, "steps", 0.25)
    for quarter in range(4):
        part = steps[10 * quarter : 10 * quarter + 10]
        assert sorted(part) == list(range(10 * quarter, 10 * quarter + 10))
        assert part.tolist() != sorted(part)
    early = {pacing: order(400, pacing, 0.1)[:100].mean() for pacing in ("linear", "root")}
    assert 52 < early["linear"] < early["root"] < 190  # 199.5 would be shuffled
    assert order(400, "linear", 1.0)[:200].mean() == pytest.approx(199.5, abs=25)


def test_the_plan_is_ordered_in_its_first_epochs_only_and_on_any_topology() -> None:
    difficulty = np.random.default_rng(5).permutation(70) // 2  # with ties
    curriculum = Curriculum(difficulty, epochs=2, start=0.1)
    one, many = (
        make_plan(70, curriculum=curriculum, **world)
        for world in ({}, {"world_size": 3, "micro_batch": 1, "token_budget": 100})
    )
    for epoch in range(3):
        steps = pairs_of(one, epoch, 1)
        assert pairs_of(many, epoch, 3) == steps
        assert sorted(itertools.chain(*steps)) == list(range(70))
        rise = np.corrcoef(np.arange(70), difficulty[one.order(epoch)])[0, 1]
        assert rise > 0.9 if epoch < 2 else abs(rise) < 0.4
    assert one.order(0).tolist() != one.order(1).tolist()  # ties and draws differ by epoch


def test_repeated_pairs_are_ordered_too() -> None:
    repeats = np.where(np.arange(20) < 10, 2.0, 0.5)
    plan = make_plan(20, repeats=repeats, curriculum=Curriculum(np.arange(20.0)))
    found = plan.order(0)
    assert len(found) == 25
    assert (np.diff(found) >= 0).all()


def graded(rows: Rows, write_rows: Callable[..., Path]) -> Path:
    """Rows whose difficulty is their number, backwards; the third has none, the fourth as text."""
    hard = [{**row, "rank": -number} for number, row in enumerate(rows)]
    hard[2]["rank"] = "unknown"
    hard[3]["rank"] = "-3.0"
    return write_rows(hard)


def first_pairs(trainer: ORPOTrainer) -> list[int]:
    plan = trainer.train_plan
    assert plan is not None
    return plan.order(0).tolist()


def test_a_difficulty_column(
    tokenizer: Any, demo_rows: Rows, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    path = graded(demo_rows[:10], write_rows)
    columns = Columns(difficulty="rank")
    for _ in range(2):  # the second time from the cache
        pairs = prepare([str(path)], Encoder(tokenizer, None, Limits()), columns, "train")
        assert pairs.difficulty is not None
        assert pairs.difficulty.tolist() == [0, -1, -3, -4, -5, -6, -7, -8, -9]
    assert pairs.report["skipped"]["no_difficulty"]["first"] == [f"{path}:3"]
    plain = prepare([str(path)], Encoder(tokenizer, None, Limits()), Columns(), "train")
    assert plain.difficulty is None
    assert len(plain) == 10
    with pytest.raises(UserError, match=r"has no column 'nope'.*--difficulty-column"):
        prepare(
            [str(path)], Encoder(tokenizer, None, Limits()), Columns(difficulty="nope"), "train"
        )


def test_orders_of_the_trainer(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "chosen": "a " * n, "rejected": "b " * n, "difficulty": -n}
        for n in (30, 5, 20, 10)
    ]

    def order_by(name: str) -> list[int]:
        settings = config(tmp_path, curriculum=name, batch_size=1)
        return first_pairs(ORPOTrainer(tiny_model, settings, rows, processing_class=tokenizer))

    assert order_by("length") == [1, 3, 2, 0]
    assert order_by("difficulty") == [0, 2, 3, 1]
    with pytest.raises(UserError, match="have no difficulty"):
        order_by("margin")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"curriculum_pacing": "steps"}, "needs curriculum_start"),
        ({"curriculum": "files"}, "several files"),
        ({"curriculum": "easy"}, "difficulty"),
        ({"curriculum_start": 2}, "curriculum_start"),
    ],
)
def test_settings_that_cannot_be(
    tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        settings(tiny_model_dir, tmp_path, **changes)


def trained_order(model: Path, folder: Path, **changes: Any) -> tuple[list[int], ORPOTrainer]:
    """The order that ``train`` really uses, from the trainer it makes."""
    made: list[ORPOTrainer] = []

    class Watched(ORPOTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            made.append(self)
            return super().train(*args, **kwargs)

    changes = {"max_steps": 1, "log": "none", **changes}
    train(settings(model, folder, **changes), trainer_class=Watched)
    return first_pairs(made[0]), made[0]


def test_files_in_order(
    tiny_model_dir: Path,
    demo_rows: Rows,
    write_rows: Callable[..., Path],
    tmp_path: Path,
) -> None:
    paths = [str(write_rows(demo_rows[at : at + 6], f"{at}.jsonl")) for at in (12, 0, 6)]
    found, _ = trained_order(tiny_model_dir, tmp_path / "run", data_path=paths, curriculum="files")
    for at in (0, 6, 12):
        assert sorted(found[at : at + 6]) == list(range(at, at + 6))
        assert found[at : at + 6] != list(range(at, at + 6))  # shuffled within a file


def test_margins_under_the_base_model_scored_once(
    tiny_model_dir: Path,
    demo_rows: Rows,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = str(write_rows(demo_rows[:12]))
    extra: dict[str, Any] = {"data_path": path, "curriculum": "margin"}
    found, trainer = trained_order(tiny_model_dir, tmp_path / "a", **extra)
    # The oracle: every pair evaluated alone on the padded path.
    margins = []
    for number, row in enumerate(demo_rows[:12]):
        one = write_rows([row], f"one-{number}.jsonl")
        margins.append(
            evaluate_model(
                str(tiny_model_dir),
                str(one),
                settings(tiny_model_dir, tmp_path, attention="padded"),
                progress=False,
            )["mean_margin"]
        )
    assert trainer.train_dataset.difficulty == pytest.approx(-np.asarray(margins), abs=2e-4)
    assert found == np.argsort(trainer.train_dataset.difficulty).tolist()

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("scored twice")

    monkeypatch.setattr("orpo_dist.training.difficulty.score_dataset", never)
    again, _ = trained_order(tiny_model_dir, tmp_path / "b", **extra)
    assert again == found
    with pytest.raises(AssertionError, match="scored twice"):  # other pairs, other margins
        trained_order(tiny_model_dir, tmp_path / "c", **extra, max_prompt_length=8)
    folder = Path(os.environ["ORPO_DIST_CACHE"]) / "margins"
    (cached,) = (p for p in folder.glob("*.npy") if len(np.load(p)) == 12)
    cached.write_bytes(b"damaged")
    with pytest.raises(AssertionError, match="scored twice"):
        trained_order(tiny_model_dir, tmp_path / "d", **extra)


def test_a_resumed_curriculum_equals_the_uninterrupted(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Resumed within the ordered epoch, and within the shuffled one after it (48 steps each)."""
    extra: dict[str, Any] = {
        "curriculum": "length", "curriculum_start": 0.2, "max_steps": 55, "peft": True,
        "save_strategy": "steps", "save_steps": 25, "save_total_limit": None,
    }  # fmt: skip
    train(settings(tiny_model_dir, tmp_path / "whole", **extra))
    whole = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    for step in (25, 50):
        cut = tmp_path / f"cut-{step}"
        shutil.copytree(tmp_path / "whole", cut)
        for later in cut.glob("checkpoint-*"):
            if int(later.name.split("-")[1]) > step:
                shutil.rmtree(later)
        train(settings(tiny_model_dir, cut, resume_from_checkpoint="auto", **extra))
        found = read_metrics(cut / "metrics.jsonl")
        assert [e["loss/orpo"] for e in found] == pytest.approx(
            [e["loss/orpo"] for e in whole], abs=1e-6
        )


@pytest.mark.parametrize("start", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("pacing", ["linear", "root"])
def test_a_pacing_begins_with_its_share_and_ends_with_all(pacing: str, start: float) -> None:
    pace = PACINGS[pacing]
    assert pace(0.0, start) == pytest.approx(start) and pace(1.0, start) == pytest.approx(1)
    middle = {"linear": (1 + start) / 2, "root": np.sqrt((1 + start**2) / 2)}[pacing]
    assert pace(0.5, start) == pytest.approx(middle)
