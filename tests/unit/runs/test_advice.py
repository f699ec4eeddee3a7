"""Advice: every rule speaks on a run made to fail that way, and is silent on a healthy one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import train
from orpo_dist.runs.advice import RULES, advise, table
from orpo_dist.runs.folder import read_json, read_metrics
from tests.conftest import DEMO, ROOT
from tests.unit.training.test_run import settings

Lines = list[dict[str, Any]]


def healthy(lines: int = 20) -> Lines:
    """A run that goes well, evenly."""
    return [
        {
            "step": step, "progress": step / lines, "orpo_alpha": 1.0,
            "loss/orpo": 3 - step / lines,
            "loss/sft": 2.5 - step / lines, "logps/chosen": -2.5 + step / lines,
            "logps/rejected": -2.4 + step / (2 * lines), "logps/margins": step / (2 * lines) - 0.1,
            "rewards/accuracies": 0.5 + step / (3 * lines), "grad_norm": 2 - step / lines,
        }
        for step in range(1, lines + 1)
    ]  # fmt: skip


def changed(name: str, value: Callable[[float], float]) -> Lines:
    return [{**line, name: value(line["progress"])} for line in healthy()]


def names(log: Lines, data: dict[str, Any] | None = None) -> list[str]:
    return [advice.rule for advice in advise(log, data)]


def test_a_healthy_run_is_left_alone() -> None:
    held_out = [
        {"step": 5 * k, "eval/loss": loss} for k, loss in enumerate([3.0, 2.5, 2.505, 2.51])
    ]
    cut = {"pairs": 10, "truncated": {"prompt": {"count": 5}, "chosen": {"count": 1}}}
    assert names(healthy() + held_out, cut) == []
    assert names([]) == []


@pytest.mark.parametrize(
    ("rule", "log"),
    [
        ("not_finite", changed("grad_norm", lambda p: float("nan") if p > 0.5 else 1.0)),
        ("not_finite", changed("skipped_steps", lambda p: 3 * (p > 0.5))),
        ("not_finite", changed("loss/orpo", lambda p: float("inf") if p == 1 else 1.0)),
        ("exploding_gradients", changed("grad_norm", lambda p: 10.1 if p > 0.85 else 1.0)),
        ("nll_rising", changed("loss/sft", lambda p: 2.0 + max(0, p - 0.5))),
        ("flat_margins", changed("logps/margins", lambda p: 0.02 * p)),
        ("perfect_accuracy", changed("rewards/accuracies", lambda p: 0.99)),
    ],
)  # fmt: skip
def test_each_rule_speaks_alone_on_its_lines(rule: str, log: Lines) -> None:
    if rule == "flat_margins":
        log = [{**line, "rewards/accuracies": 0.5} for line in log]
    if rule == "nll_rising":  # accuracy and margin as they are
        assert names(log[:12]) == []  # up by only .1 so far
    assert names(log) == [rule]
    assert str(advise(log)[0]).count("; try ") == 1


def test_both_must_fall() -> None:
    def log(chosen: float, rejected: float) -> Lines:
        return [
            {
                **line,
                "logps/chosen": -2 - chosen * line["progress"],
                "logps/rejected": -2 - rejected * line["progress"],
            }
            for line in healthy()
        ]

    assert names(log(0.2, 0.5)) == ["both_falling"]
    assert names(log(0.05, 0.5)) == names(log(0.2, -0.5)) == []


def test_not_before_there_is_enough_to_go_by() -> None:
    flat = [{**line, "rewards/accuracies": 0.5} for line in changed("logps/margins", lambda p: 0)]
    assert names(flat[:9]) == []  # 45 % of the run
    assert names([*flat[:4], flat[-1]]) == []  # five lines
    assert names([{**line, "orpo_alpha": 0.0} for line in flat]) == []  # plain fine-tuning


def test_what_is_true_of_the_data_is_said_once_a_stage(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = [{"max_steps": 2}, {"max_steps": 3}]
    with caplog.at_level(logging.INFO, logger="orpo_dist"):
        train(settings(tiny_model_dir, tmp_path, stages=stages, max_prompt_length=4, log="none"))
    said = [r.message for r in caplog.records if r.message.startswith("advice: ")]
    assert [line.partition(": 192 of 192")[0] for line in said] == [
        "advice: stage 1",
        "advice: stage 2",
    ]


def test_a_perfect_accuracy_that_was_learnt_is_no_fault() -> None:
    assert names(changed("rewards/accuracies", lambda p: 1.0 if p > 0.1 else 0.6)) == []


def test_every_stage_is_judged_by_itself() -> None:
    first = [{**line, "stage": 1} for line in changed("grad_norm", lambda p: float("nan"))]
    second = [{**line, "stage": 2, "step": 20 + line["step"]} for line in healthy()]
    cut = {"pairs": 10, "truncated": {"prompt": {"count": 6}}}
    found = [str(advice) for advice in advise(first + second, cut)]
    assert [line.partition(" is ")[0] for line in found[:1]] == ["stage 1: grad_norm"]
    assert [line.partition(" are ")[0] for line in found[1:]] == ["stage 2: 6 of 10 prompts"]


def test_the_docs_are_the_rules() -> None:
    page = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
    assert table() in page
    assert len({rule.name for rule in RULES}) == len(RULES)


# --- real runs made to fail


def real(
    model: Path, folder: Path, caplog: pytest.LogCaptureFixture, **changes: Any
) -> tuple[list[str], str]:
    """Rules that spoke in a real run, which log, run.json and report agree on."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="orpo_dist"):
        train(settings(model, folder, **{"max_steps": 30, "log": "none", **changes}))
    said = [r.message for r in caplog.records if r.message.startswith("advice: ")]
    data = read_json(folder / "data_report.json")["train"]
    found = advise(read_metrics(folder / "metrics.jsonl"), data)
    recorded = read_json(folder / "run.json")["advice"]
    assert recorded == [str(advice) for advice in found]
    page = (folder / "report.html").read_text(encoding="utf-8")
    for advice in found:
        assert advice.remedy.replace("'", "&#39;") in page
        assert sum(advice.remedy in line for line in said) == 1  # each is said once
    return [advice.rule for advice in found], page


def test_a_learning_rate_of_nothing_is_flat(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, page = real(tiny_model_dir, tmp_path, caplog, lr=1e-9, batch_size=16)
    assert found == ["flat_margins"]
    assert "<h2>Advice</h2>" in page


def test_a_healthy_real_run(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, page = real(tiny_model_dir, tmp_path, caplog, lr=3e-3, batch_size=16, orpo_alpha=0.2)
    assert found == []
    assert "<h2>Advice</h2>" not in page


def test_a_learning_rate_out_of_hand(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, _ = real(
        tiny_model_dir,
        tmp_path,
        caplog,
        lr=30,
        optimizer="sgd",
        max_grad_norm=0,
        warmup_ratio=0,
        max_bad_steps=99,
    )
    assert found[0] == "not_finite"
    assert "flat_margins" not in found  # NaN is no trend


def test_an_alpha_out_of_hand(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = {"orpo_alpha_schedule": "0:0.1,0.5:0.1,0.6:100"}
    found, _ = real(tiny_model_dir, tmp_path, caplog, lr=0.05, max_grad_norm=0, **alpha)
    assert set(found) == {"exploding_gradients", "nll_rising", "both_falling"}


def test_eight_pairs_learnt_by_heart_and_once_more(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join((DEMO / "train.jsonl").read_text().splitlines(True)[:8]))
    extra: dict[str, Any] = {"data_path": str(few), "lr": 3e-2, "max_prompt_length": 8}
    held_out = {"valid_data_path": str(DEMO / "eval.jsonl"), "eval_strategy": "steps"}
    found, _ = real(tiny_model_dir, tmp_path / "a", caplog, eval_steps=10, **held_out, **extra)
    assert found == ["held_out_rising", "truncated"]
    found, _ = real(tmp_path / "a", tmp_path / "b", caplog, **{**extra, "lr": 1e-4})
    assert "perfect_accuracy" in found
