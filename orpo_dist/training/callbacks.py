"""What a run writes while it goes: metrics.jsonl, TensorBoard, and a line a person can read."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback, is_tensorboard_available

from orpo_dist.base.metrics import METRICS
from orpo_dist.runs.advice import advise
from orpo_dist.runs.folder import read_metrics, write_text

logger = logging.getLogger("orpo_dist")


def named_log(logs: dict[str, Any]) -> dict[str, float]:
    """A log entry as metrics.jsonl has it: numbers only, evaluations as ``eval/…``."""
    return {
        ("eval/" + key.removeprefix("eval_") if key.startswith("eval_") else key): value
        for key, value in logs.items()
        if isinstance(value, (int, float))
    }


class MetricsFile(TrainerCallback):
    """Appends one JSON object per logged step to ``metrics.jsonl``."""

    def __init__(self, path: Path, stage: int | None = None, first_step: int = 0):
        """stage: of a staged run, which begins after ``first_step`` steps."""
        self.path, self.stage, self.first_step = path, stage, first_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """On resume, drop what was logged after the checkpoint: those steps are run again."""
        if not state.is_world_process_zero:
            return
        kept = [line for line in read_metrics(self.path) if self._stays(line, state.global_step)]
        lines = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(self.path, lines)

    def _stays(self, line: dict[str, Any], done: int) -> bool:
        """Whether a line is from before this stage, or from the ``done`` steps of it."""
        if line.get("stage") != self.stage:
            return line.get("stage", 0) < (self.stage or 0)
        return done > 0 and line["step"] <= self.first_step + done

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        entry = {"step": state.global_step, "epoch": state.epoch, **named_log(logs)}
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")


class Patience(EarlyStoppingCallback):
    """Trainer's early stopping, whose count of evaluations goes on where the run does."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that had lost its patience when it was killed has no step left to make."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class AdviceLines(TrainerCallback):
    """Says what the rules of ``advice`` find, each once, when a fiftieth of the run has passed."""

    EVERY = 0.02

    def __init__(self, metrics: Path, data: dict[str, Any]):
        """metrics: the metrics.jsonl, whose lines from before a resume count. data: the report."""
        self.metrics, self.data = metrics, data

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log = read_metrics(self.metrics)
        before = advise(self._log, self.data) if self._log else []  # said by the run resumed here
        self._said = {(advice.stage, advice.rule) for advice in before}
        self._next = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        entry = {"step": state.global_step, **named_log(logs)}
        self._log.append(entry)
        if "eval/loss" in entry or entry.get("progress", 0.0) >= self._next:
            self._next = entry.get("progress", self._next) + self.EVERY
            self._say(state)

    def _say(self, state: Any) -> None:
        for advice in advise(self._log, self.data):
            if (advice.stage, advice.rule) not in self._said and state.is_world_process_zero:
                logger.warning("advice: %s", advice)
            self._said.add((advice.stage, advice.rule))


def tensorboard(folder: Path) -> list[TensorBoardCallback]:
    """TensorBoard events under ``folder``; the writer opens when the first value comes.

    None, and a word about it, where tensorboard is not installed.
    """
    if not is_tensorboard_available():
        logger.warning(
            "log tensorboard: tensorboard is not installed, so the values stand in metrics.jsonl "
            "alone; pip install tensorboard, or --log none"
        )
        return []
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return [callback]


class ProgressLine(ProgressCallback):
    """Trainer's progress bars with one short line per log; lines alone where no one watches."""

    def __init__(self) -> None:
        super().__init__()
        self.bars = sys.stderr.isatty()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bars:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bars:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bars:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bars:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        prefix = "eval_" if "eval_loss" in logs else ""
        shown = [
            f"{metric.short} {metric.shown(logs[prefix + name])}"
            for name, metric in METRICS.items()
            if metric.short and isinstance(logs.get(prefix + name), (int, float))
        ]
        if not shown or not state.is_world_process_zero:
            return
        line = f"stage {logs['stage']}  " if "stage" in logs else ""
        line += f"{'eval ' if prefix else 'train'} {state.global_step}/{state.max_steps}  "
        line += "  ".join(shown)
        if self.training_bar is not None:
            self.training_bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)
