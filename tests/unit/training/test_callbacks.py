"""What a run says and writes as it goes, and what of it a resumed run says again: nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orpo_dist.runs.folder import read_metrics
from orpo_dist.training.callbacks import AdviceLines, MetricsFile, named_log

CUT = {"pairs": 10, "truncated": {"prompt": {"count": 9}}}


def line(step: int, **changes: Any) -> dict[str, Any]:
    """Of a run in which all goes well but what the changes say."""
    return {
        "step": step, "progress": step / 20, "orpo_alpha": 1.0, "loss/orpo": 3 - step / 20,
        "loss/sft": 2 - step / 20, "logps/chosen": step / 20 - 2, "logps/rejected": -2.0,
        "logps/margins": step / 20, "rewards/accuracies": 0.5, "grad_norm": 1.0, **changes,
    }  # fmt: skip


class Run:
    """Logs of one run, given to its callbacks as the Trainer would."""

    def __init__(self, path: Path, data: dict[str, Any], first: int = 0, **places: Any):
        self.state = SimpleNamespace(is_world_process_zero=True, global_step=first, epoch=0.5)
        self.callbacks = [MetricsFile(path, **places), AdviceLines(path, data)]
        for callback in self.callbacks:
            callback.on_train_begin(None, self.state, None)

    def log(self, *lines: dict[str, Any]) -> None:
        for entry in lines:
            self.state.global_step = entry["step"]
            logs = {name: value for name, value in entry.items() if name != "step"}
            for callback in self.callbacks:
                callback.on_log(None, self.state, None, logs=logs)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    """``said()``: the advice since the last call."""
    caplog.set_level(logging.INFO, "orpo_dist")

    def take() -> list[str]:
        found = [m for m in caplog.messages if m.startswith("advice: ")]
        caplog.clear()
        return found

    return take


def test_a_resumed_run_does_not_repeat_its_advice(tmp_path: Path, said: Any) -> None:
    """Neither what its lines showed before nor what is true of its data."""
    path, nan = tmp_path / "metrics.jsonl", float("nan")
    Run(path, CUT).log(line(1), line(2, grad_norm=nan), line(3))
    assert [text.partition(" of 10")[0].partition(" is ")[0] for text in said()] == [
        "advice: 9", "advice: grad_norm",
    ]  # fmt: skip
    again = Run(path, CUT, first=3)
    again.log(line(4, grad_norm=nan), line(5))
    assert said() == []
    again.log(*(line(step, **{"rewards/accuracies": 0.99}) for step in range(6, 20)))
    assert said() == []  # learnt, which is no fault
    rising = [line(step, **{"loss/sft": 9.0}) for step in (19, 20)]
    again.log(*rising)
    assert ["nll" in text.lower() or "loss/sft" in text for text in said()] == [True]


def test_what_the_lost_steps_showed_is_said_when_it_comes_again(tmp_path: Path, said: Any) -> None:
    """A resume drops lines after its checkpoint, and with them what they had shown."""
    path = tmp_path / "metrics.jsonl"
    Run(path, {}).log(line(1), line(2), line(3, grad_norm=float("inf")))
    assert len(said()) == 1
    again = Run(path, {}, first=2)
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2]
    again.log(line(3, grad_norm=float("inf")), line(4))
    assert len(said()) == 1


def test_every_stage_has_its_say(tmp_path: Path, said: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    for stage in (1, 2):
        run = Run(path, CUT, stage=stage, first_step=5 * (stage - 1))
        run.log(line(1, stage=stage), line(2, stage=stage))
        assert [text.partition(": 9 of")[0] for text in said()] == [f"advice: stage {stage}"]
    Run(path, CUT, first=2, stage=2).log(line(3, stage=2))
    assert said() == []


def test_one_rank_speaks(tmp_path: Path, said: Any) -> None:
    run = Run(tmp_path / "metrics.jsonl", CUT)
    run.state.is_world_process_zero = False
    run.log(line(1))
    assert said() == [] and read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_resume_keeps_the_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": s, "stage": 1 + (s > 3)} for s in range(1, 8)]

    def left(done: int, stage: int) -> list[int]:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        Run(path, {}, done, stage=stage, first_step=3 * (stage - 1))
        return [entry["step"] for entry in read_metrics(path)]

    assert left(0, 1) == [] and left(2, 1) == [1, 2]
    assert left(0, 2) == [1, 2, 3] and left(1, 2) == [1, 2, 3, 4]


def test_the_end_of_training_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    Run(path, {}).log(line(1), {"step": 1, "train_runtime": 3.0})
    assert [entry["step"] for entry in read_metrics(path)] == [1]


def test_names_of_a_log() -> None:
    logs = {"loss": 1, "eval_loss": 2.5, "eval_logps/chosen": -1.0, "note": "x"}
    assert named_log(logs) == {"loss": 1, "eval/loss": 2.5, "eval/logps/chosen": -1.0}
