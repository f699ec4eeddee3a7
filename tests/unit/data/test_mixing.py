"""Several tasks in one run: how often each comes, and what the log says of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orpo_dist import ORPOTrainer, UserError, cli, evaluate_model, train
from orpo_dist.base.types import PairScores
from orpo_dist.batching.steps import repeats_of, temperature_weights
from orpo_dist.config import build_config
from orpo_dist.runs.folder import read_metrics
from orpo_dist.runs.report import write_report
from orpo_dist.scoring.metrics import MEANS, MOST_CATEGORIES, RunningMeans
from tests.unit.batching.test_steps import make_plan
from tests.unit.training.test_run import settings
from tests.unit.training.test_trainer import config

Rows = list[dict[str, Any]]


@pytest.mark.parametrize(
    ("temperature", "shares"),
    [
        (1.0, [0.9, 0.1]),
        (2.0, [0.75, 0.25]),  # square roots of 9 and 1
        (1000.0, [0.5, 0.5]),
        (0.5, [81 / 82, 1 / 82]),
    ],
)
def test_a_temperature_sets_the_shares_of_an_epoch(temperature: float, shares: list[float]) -> None:
    sources = np.repeat([0, 1], [900, 100])
    repeats = repeats_of(sources, temperature_weights(sources, temperature))
    plan = make_plan(1000, repeats=repeats)
    assert plan.pairs_per_epoch == 1000
    drawn = np.bincount(sources[plan.order(0)], minlength=2) / 1000
    assert drawn == pytest.approx(shares, abs=0.002)


def test_a_source_without_usable_pairs_takes_no_share() -> None:
    assert temperature_weights(np.asarray([0, 0, 2, 2]), 3.0) == [1, 0, 1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data_path": ["a"]}, "several sources"),
        ({"data_path": ["a", "b"], "data_weights": [1, 2]}, "choose one"),
        ({"data_path": ["a", "b"], "data_temperature": 0}, "data_temperature"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_config({"data_temperature": 2, **values})


def sorted_by_task(rows: Rows) -> Rows:
    tasks = ["sums", "<b>prose</b>", "sums", ""]
    return [{**row, "category": tasks[number % 4]} for number, row in enumerate(rows)]


def test_metrics_of_each_category_equal_an_evaluation_of_its_rows_alone(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    rows = sorted_by_task(demo_rows[:18])
    trainer = ORPOTrainer(
        tiny_model, config(tmp_path, batch_size=3), None, rows, processing_class=tokenizer
    )
    found = trainer.evaluate()
    for task, shown in (("sums", "sums"), ("<b>prose</b>", "<b>prose</b>"), ("", "(none)")):
        mine = [row for row in rows if row["category"] == task]
        alone = trainer.evaluate(mine)
        assert found[f"eval_pairs/{shown}"] == len(mine)
        for name in ("rewards/accuracies", "logps/margins", "loss/sft"):
            assert found[f"eval_{name}/{shown}"] == pytest.approx(alone[f"eval_{name}"], abs=1e-6)
        assert not any(key.startswith("eval_pairs/") for key in alone)  # one alone needs no name


def test_categories_while_training_add_up_and_reach_file_and_report(
    tiny_model_dir: Path, demo_rows: Rows, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    """Two sources without a category column are told apart by their names."""
    plain = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in demo_rows]
    paths = [
        str(write_rows(plain[:30], "big.jsonl")),
        str(write_rows(plain[30:40], "small<.jsonl")),
    ]
    folder = tmp_path / "run"
    train(
        settings(
            tiny_model_dir, folder, data_path=paths, data_temperature=100.0, max_steps=None,
            epochs=1, logging_steps=10, batch_size=2, gradient_accumulation=2, log="none",
            valid_data_path=[], trainer_args={"logging_first_step": False},
        )
    )  # fmt: skip
    (entry,) = read_metrics(folder / "metrics.jsonl")
    counts = [entry[f"pairs/{name}"] for name in ("big", "small<")]
    assert counts == [20, 20]
    for name in ("rewards/accuracies", "logps/margins"):
        parts = [entry[f"{name}/{source}"] for source in ("big", "small<")]
        assert sum(parts) / 2 == pytest.approx(entry[name], abs=1e-6)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">small&lt;</th><td>20</td>' in page
    assert "Categories (training" in page


def test_filler_is_in_no_category() -> None:
    scores = PairScores(
        chosen_logp=torch.tensor([-1.0, -2.0]),
        rejected_logp=torch.tensor([-2.0, -1.0]),
        nll_sum=torch.tensor([3.0, 5.0]),
        nll_tokens=torch.tensor([3.0, 1.0]),
        weight=torch.tensor([1.0, 0.0]),
    )

    class Alone:
        @staticmethod
        def reduce(total: torch.Tensor, reduction: str) -> torch.Tensor:
            return total

    means = RunningMeans(["a", "b"], steps=1)
    means.add(torch.zeros(len(MEANS)), scores, torch.tensor([0, 0]))
    found = means.pop(Alone())
    assert found["pairs/a"] == found["rewards/accuracies/a"] == found["logps/margins/a"] == 1
    assert found["loss/sft/a"] == 1
    assert "pairs/b" not in found


def test_too_many_categories_do_not_bury_the_log() -> None:
    names = [str(number) for number in range(MOST_CATEGORIES + 1)]
    assert not RunningMeans(names).names
    assert RunningMeans(names[1:]).names


def test_a_run_with_a_mix_and_a_curriculum_can_be_evaluated(
    tiny_model_dir: Path, demo_rows: Rows, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    """What belongs to the training data must not stand in the way of others."""
    paths = [str(write_rows(demo_rows[at : at + 5], f"{at}.jsonl")) for at in (0, 5)]
    train(
        settings(
            tiny_model_dir, tmp_path / "run", data_path=paths, data_temperature=2,
            curriculum="files", max_steps=1, log="none",
        )
    )  # fmt: skip
    result = tmp_path / "result.json"
    words = ["evaluate", str(tmp_path / "run"), "--data-path", paths[0], "--json", str(result)]
    assert cli.main(words) == 0
    assert json.loads(result.read_text())["pairs"] == 5
    assert evaluate_model(str(tmp_path / "run"), paths[1], progress=False)["pairs"] == 5
    assert write_report(tmp_path / "run").exists()
