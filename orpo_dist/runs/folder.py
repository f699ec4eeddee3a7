"""The run folder: what lies where, and the rules for starting over or going on in it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig, dump_config
from orpo_dist.runs.lineage import (
    ASIDE,
    SAVING,
    STAGE,
    checkpoints,
    finish_saving,
    newest_checkpoint,
    set_aside,
    stage_of,
    step_of,
    unusable,
    whole_checkpoint,
)

logger = logging.getLogger("orpo_dist")

# What an attempt that saved no weights leaves behind.
RECORDS = (
    "tensorboard",
    "metrics.jsonl",
    "bad_steps.jsonl",
    "run.json",
    "data_report.json",
    "report.html",
)
MERGING = ".merging"  # where an adapter's merged model is written, until it is whole
DONE = "stage.json"  # in the folder of a stage that is done
CARD = "README.md"
CARD_MARK = "<!-- Written by orpo_dist, which replaces it; without this line it is yours. -->"
# What a run leaves behind, beside its card; nothing else in the folder is ever removed.
ARTEFACTS = (
    *RECORDS, MERGING, SAVING, ASIDE, "hang", ".heartbeats", "stage-*", "checkpoint-*",
    "config.yaml", "config.json", "generation_config.json",
    "adapter_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*",
    "special_tokens_map.json",
    "chat_template.jinja", "vocab.*", "merges.txt", "added_tokens.json",
)  # fmt: skip


class RunFolder:
    """The folder of one run. writes: False for all ranks but 0, which leave it to rank 0."""

    def __init__(self, path: str | Path, writes: bool = True):
        self.writes = writes
        self.path = Path(path).expanduser()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.bad_steps = self.path / "bad_steps.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.run = self.path / "run.json"
        self.data_report = self.path / "data_report.json"
        self.report = self.path / "report.html"

    def open(self, config: ORPOConfig) -> Path | None:
        """Make the folder ready and return the checkpoint to go on from, if any.

        Raises ``UserError`` where a run is already there and the config does not say what to do.
        """
        for scratch in (self.path / SAVING, *self.path.glob(f"{STAGE}*/{SAVING}")):
            finish_saving(scratch)
        checkpoint = self.checkpoint(config.resume_from_checkpoint)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"project_name {self.path}: cannot be created ({error})") from error
        if not self.run.exists() and checkpoint is None:
            for taken in (self.config, *sorted(self.path.glob("*.safetensors"))):
                if taken.exists():
                    raise UserError(
                        f"project_name {self.path}: is no run folder, and its {taken.name} would "
                        "be overwritten; choose another name"
                    )
        own = checkpoint is not None and self.path.resolve() in checkpoint.resolve().parents
        goes_on = own or (config.resume_from_checkpoint == "auto" and bool(self.finished_stages()))
        if self.run.exists() and not goes_on:
            if self._holds_work(config.resume_from_checkpoint) and not config.overwrite:
                raise UserError(f"project_name {self.path}: {_taken(config)}")
            self._clear(ARTEFACTS if config.overwrite else RECORDS)
        return checkpoint

    def _holds_work(self, resume: str) -> bool:
        """Whether starting anew would lose something; a failed attempt leaves nothing to lose."""
        if self._weights() or self.finished_stages():
            return True
        if resume == "auto":  # would have gone on from a checkpoint that is whole
            return False
        running = read_json(self.run).get("status") == "running"
        return running or newest_checkpoint(self.path) is not None

    def checkpoint(self, wanted: str) -> Path | None:
        """What ``resume_from_checkpoint`` means here; ``UserError`` where that is not complete."""
        if wanted == "never":
            return None
        if wanted == "auto":
            return whole_checkpoint(self.path)
        path = Path(wanted).expanduser()
        if reason := unusable(path):
            raise UserError(
                f"resume_from_checkpoint {wanted}: is not a complete checkpoint: {reason}"
            )
        return path

    def _weights(self) -> bool:
        return any(self.path.glob("*.safetensors"))

    def _clear(self, patterns: tuple[str, ...]) -> None:
        for pattern in patterns:
            for path in self.path.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if patterns == ARTEFACTS and is_own_card(self.path / CARD):
            (self.path / CARD).unlink()

    def stage(self, number: int) -> RunFolder:
        """The folder of a stage: its checkpoints, and its weights unless it is the last."""
        return RunFolder(self.path / f"{STAGE}{number}", self.writes)

    def finished_stages(self) -> list[dict[str, Any]]:
        """What each stage that is done has left in its stage.json, from the first on."""
        found: list[dict[str, Any]] = []
        while record := read_json(self.stage(len(found) + 1).path / DONE):
            found.append(record)
        return found

    def finish_stage(self, number: int, **record: Any) -> None:
        """Mark a stage as done; the last thing that is written of it."""
        if self.writes:
            write_json(self.stage(number).path / DONE, record)

    def go_on(self, checkpoint: Path | None) -> Path | None:
        """Set aside what this run, or this stage, has saved after ``checkpoint``; where that lies.

        So a later ``auto`` takes nothing from a branch that was left. A checkpoint that was itself
        set aside takes its place again.
        """
        step = -1
        if checkpoint is not None and self.path.resolve() in checkpoint.resolve().parents:
            step = step_of(checkpoint)
        again = checkpoint is not None and checkpoint.resolve().parent.name == ASIDE and step >= 0
        later = [path for path in checkpoints(self.path) if step_of(path) > step - again]
        if later:
            names = ", ".join(path.name for path in later)
            before = f"after {checkpoint.name}" if checkpoint and step >= 0 else "from the start"
            logger.warning("goes on %s: %s set aside in %s", before, names, self.path / ASIDE)
        for path in reversed(later):
            set_aside(path)
        if checkpoint is None or not again:
            return checkpoint
        return checkpoint.rename(self.path / f"checkpoint-{step}")

    def begin_stage(self, number: int, checkpoint: Path | None) -> None:
        """Forget this stage, but for the checkpoint it goes on from, and all after it.

        What they have saved is set aside.
        """
        if not self.writes:
            return
        for folder in self.path.glob(f"{STAGE}*"):
            if stage_of(folder / "checkpoint-0") > number - (checkpoint is None):
                if (folder / DONE).exists() or checkpoints(folder):
                    set_aside(folder)
                else:
                    shutil.rmtree(folder)
        stage = self.stage(number).path
        stage.mkdir(exist_ok=True)
        (stage / DONE).unlink(missing_ok=True)

    def write_config(self, config: ORPOConfig) -> None:
        """The resolved config; ``orpo-dist train --config`` reads it back."""
        replay = config.replace(overwrite=False, resume_from_checkpoint="never")
        if self.writes:
            write_text(self.config, dump_config(replay))

    def update_run(self, at_all_costs: bool = False, **entries: Any) -> None:
        """Set entries of run.json, replacing the file as a whole.

        at_all_costs: where the disk takes no new file, overwrite the old one; never raises.
        """
        if not self.writes:
            return
        content = {**read_json(self.run), **entries}
        try:
            write_json(self.run, content)
        except OSError:
            if not at_all_costs:
                raise
            with contextlib.suppress(OSError):
                self.run.write_text(json.dumps(content), encoding="utf-8")

    def drop_unfinished(self) -> None:
        """Delete what was saved of a checkpoint that never became one."""
        if self.writes:
            for scratch in (self.path / SAVING, *self.path.glob(f"{STAGE}*/{SAVING}")):
                finish_saving(scratch)


def _taken(config: ORPOConfig) -> str:
    if config.resume_from_checkpoint == "auto":
        return (
            "holds a model, and no whole checkpoint to go on from; choose another name, or replace "
            "it with --overwrite"
        )
    return (
        "already holds a run; choose another name, go on with --resume-from-checkpoint auto if it "
        "is unfinished, or replace it with --overwrite"
    )


def is_own_card(path: Path) -> bool:
    """Whether a README.md is one that a run has written, and not a person."""
    try:
        return CARD_MARK in path.read_text(encoding="utf-8")
    except (OSError, ValueError):  # not there, not UTF-8
        return False


def training_data(reports: dict[str, Any]) -> dict[str, Any] | None:
    """The report on the training data in data_report.json, of the last stage that has any."""
    found = [report for name, report in reports.items() if name.rpartition(" ")[2] == "train"]
    return found[-1] if found and isinstance(found[-1], dict) else None


def saved_step(folder: RunFolder) -> int:
    """The steps that a resume would not repeat, over all stages."""
    finished, checkpoint = folder.finished_stages(), newest_checkpoint(folder.path)
    steps = sum(int(stage["steps"]) for stage in finished)
    if checkpoint is None or 0 < stage_of(checkpoint) <= len(finished):
        return steps
    return steps + step_of(checkpoint)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # ValueError: not JSON, not UTF-8
        return {}
    return content if isinstance(content, dict) else {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; a line cut off by a crash is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that readers see the old file or the new one, never half."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that readers see the old one or the new one, never half."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
