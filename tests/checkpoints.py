"""Checkpoints without a training: files that a resume would take for a whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orpo_dist.runs.manifest import STATE, files_in, fingerprints, seal


def make_checkpoint(folder: Path, step: int, text: str = "weights", **facts: Any) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_text(text)
    (made / STATE).write_text(json.dumps({"global_step": step}))
    seal(made, fingerprints(made, files_in(made)), {"step": step, **facts})
    return made
