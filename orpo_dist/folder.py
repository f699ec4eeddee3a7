"""The run folder: what lies where, and the rules for starting over or going on in it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from orpo_dist.config import ORPOConfig, dump_config
from orpo_dist.types import UserError

# What an attempt that saved no weights leaves behind.
RECORDS = (
    "tensorboard",
    "metrics.jsonl",
    "bad_steps.jsonl",
    "run.json",
    "data_report.json",
    "report.html",
)
STAGE = "stage-"
MERGING = ".merging"  # where an adapter's merged model is written, until it is whole
DONE = "stage.json"  # in the folder of a stage that is done
CARD = "README.md"
CARD_MARK = "<!-- Written by orpo_dist, which replaces it; without this line it is yours. -->"
# What a run leaves behind, beside its card; nothing else in the folder is ever removed.
ARTEFACTS = (
    *RECORDS, MERGING, "hang", ".heartbeats", "stage-*", "checkpoint-*", "config.yaml",
    "config.json", "generation_config.json",
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
                raise UserError(
                    f"project_name {self.path}: already holds a run; choose another name, go on "
                    "with --resume-from-checkpoint auto if it is unfinished, or replace it with "
                    "--overwrite"
                )
            self._clear(ARTEFACTS if config.overwrite else RECORDS)
        return checkpoint

    def _holds_work(self, resume: str) -> bool:
        """Whether starting anew would lose something; a failed attempt leaves nothing to lose."""
        if self._weights() or newest_checkpoint(self.path) or self.finished_stages():
            return True
        return resume != "auto" and read_json(self.run).get("status") == "running"

    def checkpoint(self, wanted: str) -> Path | None:
        """What ``resume_from_checkpoint`` means here; ``UserError`` where that is not complete."""
        if wanted == "never":
            return None
        if wanted == "auto":
            return newest_checkpoint(self.path)
        path = Path(wanted).expanduser()
        if not is_complete(path):
            raise UserError(f"resume_from_checkpoint {wanted}: is not a complete checkpoint folder")
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

    def begin_stage(self, number: int, checkpoint: Path | None) -> None:
        """Forget this stage, but for the checkpoint it goes on from, and all after it."""
        if not self.writes:
            return
        for folder in self.path.glob(f"{STAGE}*"):
            if stage_of(folder / "checkpoint-0") > number - (checkpoint is None):
                shutil.rmtree(folder)
        stage = self.stage(number).path
        stage.mkdir(exist_ok=True)
        (stage / DONE).unlink(missing_ok=True)

    def write_config(self, config: ORPOConfig) -> None:
        """The resolved config; ``orpo-dist train --config`` reads it back."""
        replay = config.replace(overwrite=False, resume_from_checkpoint="never")
        if self.writes:
            self.config.write_text(dump_config(replay), encoding="utf-8")

    def update_run(self, **entries: Any) -> None:
        """Set entries of run.json, replacing the file as a whole."""
        if self.writes:
            write_json(self.run, {**read_json(self.run), **entries})


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


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, of the last stage that has any, or None."""
    found = [
        path
        for pattern in ("checkpoint-*", f"{STAGE}*/checkpoint-*")
        for path in folder.glob(pattern)
        if is_complete(path) and (path.parent == folder or stage_of(path))
    ]
    return max(found, key=lambda path: (stage_of(path), _step_of(path)), default=None)


def stage_of(checkpoint: Path) -> int:
    """The number of the stage that a checkpoint belongs to; 0 in a run without stages.

    A run may be called ``2`` or ``stage-2`` itself: its folder has a run.json, a stage's has none.
    """
    folder = checkpoint.resolve().parent
    found = re.fullmatch(rf"{STAGE}(\d+)", folder.name)
    return int(found[1]) if found and not RunFolder(folder).run.exists() else 0


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def saved_step(folder: RunFolder) -> int:
    """The steps that a resume would not repeat, over all stages."""
    finished, checkpoint = folder.finished_stages(), newest_checkpoint(folder.path)
    steps = sum(int(stage["steps"]) for stage in finished)
    if checkpoint is None or 0 < stage_of(checkpoint) <= len(finished):
        return steps
    return steps + _step_of(checkpoint)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: trainer_state.json comes last."""
    return checkpoint.name.rpartition("-")[2].isdigit() and "global_step" in read_json(
        checkpoint / "trainer_state.json"
    )


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
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)
