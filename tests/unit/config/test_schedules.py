"""Alpha over time: a pure function of progress, the same in a run, a resumed run and by hand."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_dist import ORPOConfig, ORPOTrainer, UserError, train
from orpo_dist.config import build_config, dump_config, load_config
from orpo_dist.config.schedules import NAMES, alpha_schedule
from orpo_dist.runs.folder import read_metrics
from orpo_dist.scoring.objective import orpo_loss
from orpo_dist.scoring.padding import pad_pairs, padded_scores
from tests.conftest import DEMO, ROOT
from tests.launching import environment
from tests.unit.training.test_run import settings
from tests.unit.training.test_trainer import config

RAMP = {"orpo_alpha": 0.8, "orpo_alpha_schedule": "ramp"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [  # at progress 0, 1/4, 1/2, 3/4, 1; alpha 0.8 from 0.2, a warm-up over half of the run
        ("constant", [0.8, 0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.2, 0.35, 0.5, 0.65, 0.8]),
        ("cosine", [0.2, 0.5 - 0.3 * math.sqrt(0.5), 0.5, 0.5 + 0.3 * math.sqrt(0.5), 0.8]),
        ("warmup", [0.2, 0.5, 0.8, 0.8, 0.8]),
        ("ramp", [0, 0.4, 0.8, 0.8, 0.8]),
        ("0.25:0.1,0.75:0.3", [0.1, 0.1, 0.2, 0.3, 0.3]),
        ("math:sqrt", [0, 0.5, math.sqrt(0.5), math.sqrt(0.75), 1]),
    ],
)
def test_the_shapes(kind: str, expected: list[float]) -> None:
    schedule = alpha_schedule(kind, 0.8, 0.2, 0.5)
    assert [schedule(quarter / 4) for quarter in range(5)] == pytest.approx(expected, abs=1e-12)


def test_every_name_is_tested_above_and_told_in_the_help() -> None:
    text = ORPOConfig.model_fields["orpo_alpha_schedule"].description or ""
    assert all(name in text for name in NAMES)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"orpo_alpha_schedule": "sawtooth"}, "constant, linear, cosine, warmup, ramp"),
        ({"orpo_alpha_schedule": "0:1"}, "two or more"),
        ({"orpo_alpha_schedule": "0.5:1,0:1"}, "rising"),
        ({"orpo_alpha_schedule": "0:1,2:1"}, "between 0 and 1"),
        ({"orpo_alpha_schedule": "0:1,1:-1"}, "0 or more"),
        ({"orpo_alpha_schedule": [[0, 0.5], [1, 2]], "loss_form": "convex"}, "orpo_alpha is 2"),
        (
            {"orpo_alpha_schedule": "linear", "orpo_alpha_start": 3, "loss_form": "convex"},
            "orpo_alpha is 3",
        ),
    ],
)
def test_schedules_that_cannot_be_are_one_sentence(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build_config(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nosuchmodule:alpha", "cannot be imported"),
        ("math:nosuchfunction", "cannot be imported"),
        ("math:pi", "is not a function"),
        ("math:log", "fails at progress 0"),
        ("math:cos", "gives 1 at progress 0; alpha must lie between 0 and 0.5"),
    ],
)
def test_functions_that_cannot_serve_are_one_sentence(kind: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        alpha_schedule(kind, 1, most=0.5)


def test_points_may_be_a_list_in_yaml_and_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("orpo_alpha_schedule: [[0, 0.1], [0.5, 1]]")
    found = load_config(path)
    assert found.orpo_alpha_schedule == "0:0.1,0.5:1"
    path.write_text(dump_config(found))
    assert load_config(path) == found


def test_the_ramp_equals_a_loop_by_hand(
    tiny_model: Any, tokenizer: Any, demo_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    """The same steps in plain PyTorch: padded scores, AdamW, alpha = 0.8 min(1, 2 progress)."""
    steps, lr = 6, 1e-3
    tiny_model.double()  # so that 1e-6 is far from rounding
    by_hand = type(tiny_model)(tiny_model.config).double()
    by_hand.load_state_dict(tiny_model.state_dict())
    trainer = ORPOTrainer(
        tiny_model,
        config(
            tmp_path, max_steps=steps, lr=lr, scheduler="constant", warmup_ratio=0,
            weight_decay=0, max_grad_norm=0, **RAMP,
        ),
        demo_rows[:12],
        processing_class=tokenizer,
    )  # fmt: skip
    plan = trainer.train_plan
    assert plan is not None
    order = [s for epoch in range(2) for s in plan.epoch(epoch)]
    trainer.train()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=lr, weight_decay=0)
    logged = [e for e in trainer.state.log_history if "orpo_alpha" in e]
    for step in range(steps):
        alpha = 0.8 * min(1, 2 * step / steps)
        pairs = [trainer.train_dataset[i] for m in order[step].micro_batches for i in m]
        loss, _ = orpo_loss(padded_scores(by_hand, pad_pairs(pairs)), alpha)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert logged[step]["orpo_alpha"] == pytest.approx(alpha, abs=1e-12)
        assert logged[step]["loss/orpo"] == pytest.approx(loss.item(), abs=1e-6)
    for mine, other in zip(tiny_model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)


def test_metrics_of_an_interval_follow_alpha_step_by_step(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Loss and rewards of a log line are means over its steps, each with the alpha it had."""
    for name, every in (("fine", 1), ("coarse", 4)):
        train(settings(tiny_model_dir, tmp_path / name, logging_steps=every, lr=1e-3, **RAMP))
    fine, coarse = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("fine", "coarse"))
    (last,) = (e for e in coarse if e["step"] == 4)
    first = next(e for e in coarse if e["step"] == 1)
    for name in ("loss/orpo", "rewards/margins"):
        assert first[name] == pytest.approx(fine[0][name], abs=1e-6)
        assert last[name] == pytest.approx(sum(e[name] for e in fine[1:]) / 3, abs=1e-6)
    assert last["orpo_alpha"] == fine[3]["orpo_alpha"] == 0.8


def test_a_resumed_run_finds_its_alpha(tiny_model_dir: Path, tmp_path: Path) -> None:
    extra = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    train(settings(tiny_model_dir, tmp_path / "whole", **extra, **RAMP))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for later in ("checkpoint-4", "checkpoint-6", "model.safetensors"):
        path = tmp_path / "cut" / later
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(
        settings(tiny_model_dir, tmp_path / "cut", resume_from_checkpoint="auto", **extra, **RAMP)
    )
    whole, cut = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    for name in ("orpo_alpha", "loss/orpo"):
        assert [e[name] for e in cut] == pytest.approx([e[name] for e in whole], abs=1e-6)
    assert [e["orpo_alpha"] for e in cut] == [0.8 * min(1, 2 * step / 6) for step in range(6)]


def test_evaluations_use_the_alpha_of_the_end(
    tiny_model: Any, tokenizer: Any, demo_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    """Else a rising alpha would look like a rising loss, and the best model be the first."""
    trainer = ORPOTrainer(tiny_model, config(tmp_path, **RAMP), None, demo_rows[:9], tokenizer)
    found = trainer.evaluate()
    expected = found["eval_loss/sft"] + 0.8 * found["eval_loss/odds_ratio"]
    assert found["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_the_example_of_a_custom_loss_runs(tiny_model_dir: Path, tmp_path: Path) -> None:
    words = [
        sys.executable, str(ROOT / "examples" / "custom_loss.py"), "--model", str(tiny_model_dir),
        "--data-path", str(DEMO / "train.jsonl"), "--valid-data-path", str(DEMO / "eval.jsonl"),
        "--project-name", str(tmp_path / "run"), "--max-steps", "2", "--logging-steps", "1",
        "--orpo-alpha", "0.5", "--log", "none", "--batch-size", "3",
    ]  # fmt: skip
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    log = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for entry in log:
        prefix = "eval/" if "eval/loss" in entry else ""
        sft, odds, log_odds = (
            entry[prefix + name] for name in ("loss/sft", "loss/odds_ratio", "log_odds")
        )
        assert entry[prefix + "loss/orpo"] == pytest.approx(sft + 0.5 * odds, abs=1e-5)
        assert entry[prefix + "loss"] == pytest.approx(entry[prefix + "loss/orpo"], abs=1e-5)
        assert odds > math.log1p(math.exp(0.5 - log_odds)) - 1e-6  # Jensen, with the margin in it
