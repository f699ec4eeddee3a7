"""The line of a run: which checkpoint it goes on from, and which it has left behind."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from orpo_dist.base.types import UserError
from orpo_dist.runs.manifest import STATE, damage, facts_of, sync_folder

logger = logging.getLogger("orpo_dist")

STAGE = "stage-"
SAVING = ".saving"  # where a checkpoint is written, until it is whole
ASIDE = "set-aside"  # checkpoints that the run has left behind; a resume looks elsewhere


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that has all its files, in full size; or None."""
    found = reversed(checkpoints(folder, stages=True))
    return next((path for path in found if damage(path, thorough=False) is None), None)


def checkpoints(folder: Path, stages: bool = False) -> list[Path]:
    """The checkpoints of a run or of one stage, whole or not, oldest first.

    stages: also those in the folders of stages.
    """
    patterns = ("checkpoint-*", f"{STAGE}*/checkpoint-*")[: 1 + stages]
    found = [
        path
        for pattern in patterns
        for path in folder.glob(pattern)
        if re.fullmatch(r"checkpoint-\d+", path.name) and (path.parent == folder or stage_of(path))
    ]
    return sorted(found, key=lambda path: (stage_of(path), step_of(path)))


def whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint to go on from, every file of it checked; says what it passed over.

    Raises ``UserError`` where there are only checkpoints that nothing can go on from.
    """
    passed: list[str] = []
    for path in reversed(checkpoints(folder, stages=True)):
        reason = unusable(path)
        if reason is None:
            _mention_passed(passed, f"going on from {path.name}")
            return path
        passed.append(f"{path.name}: {reason}")
        if reason == MODEL_ONLY:
            raise UserError(f"resume_from_checkpoint auto: {'; '.join(passed)}")
    _mention_passed(passed, "there is no other, so the run starts anew")
    return None


def _mention_passed(passed: list[str], then: str) -> None:
    if passed:
        logger.warning("passed over %s; %s", "; ".join(passed), then)


MODEL_ONLY = (
    "it was saved with save_only_model, without the optimizer's state; start anew with its weights "
    "as --model, under another name"
)


def unusable(checkpoint: Path, thorough: bool = True) -> str | None:
    """Why nothing can go on from a checkpoint, for the end of a sentence; None if one can.

    thorough: as for ``damage``.
    """
    reason = damage(checkpoint, thorough)
    if reason is None and not facts_of(checkpoint).get("resumable", True):
        return MODEL_ONLY
    return reason


def find_best(checkpoint: Path, step: int) -> tuple[Path, str | None]:
    """The checkpoint of the best model, as one that was saved after it knows it, and what is wrong.

    It lies beside that, wherever the run was moved to; or, after going on from another run, there.
    """
    beside = checkpoint.resolve().parent / f"checkpoint-{step}"
    reason = damage(beside)
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        known = Path(state["best_model_checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return beside, reason
    if reason is None or damage(known) is not None:
        return beside, reason
    return known, None


def finish_saving(scratch: Path) -> None:
    """Put a checkpoint that was whole when its run was killed in its place; drop any other."""
    for path in checkpoints(scratch):
        if damage(path) is None:
            put_in_place(path, scratch.parent)
    shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(checkpoint: Path, folder: Path) -> None:
    """Move a whole checkpoint into the folder of its run, for any of the same name there."""
    target, old = folder / checkpoint.name, checkpoint.with_name("replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)  # killed here, finish_saving goes on
    checkpoint.rename(target)
    sync_folder(folder)
    shutil.rmtree(old, ignore_errors=True)


def set_aside(checkpoint: Path) -> None:
    """Move a checkpoint where no resume looks for one."""
    aside = checkpoint.parent / ASIDE
    aside.mkdir(exist_ok=True)
    number, target = 1, aside / checkpoint.name
    while target.exists():
        number += 1
        target = aside / f"{checkpoint.name}.{number}"
    checkpoint.rename(target)


def stage_of(checkpoint: Path) -> int:
    """The number of the stage that a checkpoint belongs to; 0 in a run without stages.

    A run may be called ``2`` or ``stage-2`` itself: its folder has a run.json, a stage's has none.
    """
    folder = checkpoint.resolve().parent
    folder = folder.parent if folder.name == ASIDE else folder
    found = re.fullmatch(rf"{STAGE}(\d+)", folder.name)
    return int(found[1]) if found and not (folder / "run.json").exists() else 0


def step_of(checkpoint: Path) -> int:
    """By its name, which may have a number of its own where it was set aside."""
    return int(checkpoint.name.rpartition("-")[2].partition(".")[0])
