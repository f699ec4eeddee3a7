"""Runs too short for their warm-up say so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import orpo_dist as od
from orpo_dist.base.types import UserError
from orpo_dist.engines.runtime import start
from orpo_dist.training.arguments import resolve, training_arguments
from orpo_dist.training.rates import idle_steps, learning_rates

ROWS = [{"prompt": f"Why {n}?", "chosen": "Because.", "rejected": "No."} for n in range(4)]
ALL = (
    "every step of this run has learning rate 0: nothing is trained; it has 1 steps and warms up "
    "for 1 of them from 0: set warmup_ratio 0, or train longer"
)


def arguments(tmp_path: Path, **settings: Any) -> Any:
    config = resolve(od.ORPOConfig(log="none", **settings), has_eval=False)
    return training_arguments(config, str(tmp_path), start())


def test_the_rates_are_those_that_a_run_meets(
    tiny_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    config = od.ORPOConfig(
        max_steps=6, warmup_ratio=0.4, batch_size=1, gradient_accumulation=1, logging_steps=1,
        project_name=str(tmp_path), log="none", save_strategy="no",
    )  # fmt: skip
    trainer = od.ORPOTrainer(tiny_model, config, ROWS, processing_class=tokenizer)
    trainer.train()
    met = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert met == pytest.approx(learning_rates(trainer.args, 6))
    assert met[0] == 0 < met[1]


@pytest.mark.parametrize(
    ("settings", "steps", "said"),
    [
        ({}, 1, ALL),
        ({}, 2, "1 of 2 steps of this run has learning rate 0; it has 2 steps and warms up"),
        ({"warmup_ratio": 0}, 1, ""),
        ({}, 10, ""),
        ({"scheduler": "constant"}, 1, ""),
        ({"scheduler": "linear", "warmup_ratio": 0.99}, 1, ALL),
    ],
)
def test_what_is_said_of_short_runs(
    settings: dict[str, Any], steps: int, said: str, tmp_path: Path
) -> None:
    found = idle_steps(arguments(tmp_path, **settings), steps)
    assert found.startswith(said) if said else found == ""


def test_a_schedule_that_follows_evaluations_has_no_rates_before(tmp_path: Path) -> None:
    config = od.ORPOConfig(log="none", scheduler="reduce_lr_on_plateau", eval_strategy="epoch")
    following = training_arguments(resolve(config, has_eval=True), str(tmp_path), start())
    assert learning_rates(following, 5) == []
    assert idle_steps(following, 1) == ""


def test_a_schedule_that_lacks_its_options_is_one_sentence(tmp_path: Path) -> None:
    lacking = arguments(tmp_path, scheduler="warmup_stable_decay")
    with pytest.raises(UserError, match="scheduler warmup_stable_decay: cannot be made"):
        learning_rates(lacking, 10)


def test_a_trainer_says_it_and_nothing_is_trained(
    tiny_model: Any, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {name: weight.clone() for name, weight in tiny_model.named_parameters()}
    config = od.ORPOConfig(max_steps=1, project_name=str(tmp_path), log="none", save_strategy="no")
    trainer = od.ORPOTrainer(tiny_model, config, ROWS, processing_class=tokenizer)
    with caplog.at_level(logging.WARNING, "orpo_dist"):
        trainer.train()
    assert ALL in caplog.messages
    assert all(torch.equal(before[n], w) for n, w in tiny_model.named_parameters())


def test_stages_say_which_they_are(
    tiny_model_dir: Path, tmp_path: Path, write_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = od.ORPOConfig(
        model=str(tiny_model_dir), data_path=[str(write_rows(ROWS))], log="none",
        project_name=str(tmp_path / "run"), warmup_ratio=0,
        stages=[{"max_steps": 1}, {"max_steps": 1, "warmup_ratio": 0.1}],
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "orpo_dist"):
        od.train(config)
    assert [said for said in caplog.messages if "learning rate 0" in said] == [f"stage 2: {ALL}"]
