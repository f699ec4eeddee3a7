"""The run folder: what lies where, and the rules for starting over or going on in it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from orpo_dist.config import ORPOConfig, dump_config
from orpo_dist.types import UserError

# What an attempt that saved no weights leaves behind.
RECORDS = ("tensorboard", "metrics.jsonl", "run.json", "data_report.json", "report.html")
# What a run leaves behind; nothing else in the folder is ever removed.
ARTEFACTS = (
    *RECORDS, "checkpoint-*", "config.yaml", "config.json", "generation_config.json",
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
        self.tensorboard = self.path / "tensorboard"
        self.run = self.path / "run.json"
        self.data_report = self.path / "data_report.json"
        self.report = self.path / "report.html"

    def open(self, config: ORPOConfig) -> Path | None:
        """Make the folder ready and return the checkpoint to go on from, if any.

        Raises ``UserError`` where a run is already there and the config does not say what to do.
        """
        checkpoint = self._checkpoint(config.resume_from_checkpoint)
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
        own = checkpoint is not None and checkpoint.resolve().parent == self.path.resolve()
        if self.run.exists() and not own:
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
        if self._weights() or newest_checkpoint(self.path):
            return True
        return resume != "auto" and read_json(self.run).get("status") == "running"

    def _checkpoint(self, wanted: str) -> Path | None:
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

    def write_config(self, config: ORPOConfig) -> None:
        """The resolved config; ``orpo-dist train --config`` reads it back."""
        replay = config.replace(overwrite=False, resume_from_checkpoint="never")
        if self.writes:
            self.config.write_text(dump_config(replay), encoding="utf-8")

    def update_run(self, **entries: Any) -> None:
        """Set entries of run.json, replacing the file as a whole."""
        if self.writes:
            write_json(self.run, {**read_json(self.run), **entries})


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    found = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


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
