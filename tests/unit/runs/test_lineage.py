"""Which checkpoint a run goes on from, and which it leaves behind."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from orpo_dist import UserError
from orpo_dist.checkpoints.saving import Saving, prune
from orpo_dist.engines.runtime import Runtime
from orpo_dist.runs.folder import RunFolder
from orpo_dist.runs.lineage import (
    SAVING,
    checkpoints,
    find_best,
    finish_saving,
    newest_checkpoint,
    put_in_place,
    set_aside,
    stage_of,
    whole_checkpoint,
)
from tests.checkpoints import make_checkpoint
from tests.unit.runs.test_manifest import WEIGHTS, flip


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def text_of(checkpoint: Path) -> str:
    return (checkpoint / WEIGHTS).read_text()


def test_the_newest_whole_one_is_taken_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (9, 10, 20, 30):
        make_checkpoint(tmp_path, step)
    flip(tmp_path / "checkpoint-30" / WEIGHTS)
    (tmp_path / "checkpoint-20" / WEIGHTS).unlink()
    with caplog.at_level(logging.WARNING, "orpo_dist"):
        assert whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert caplog.messages == [
        "passed over checkpoint-30: its model.safetensors was changed: wrong checksum; "
        "checkpoint-20: its model.safetensors is missing; going on from checkpoint-10"
    ]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-30"  # by sizes alone


def test_none_that_is_whole_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(make_checkpoint(tmp_path, 10) / WEIGHTS)
    with caplog.at_level(logging.WARNING, "orpo_dist"):
        assert whole_checkpoint(tmp_path) is None
    assert caplog.messages[0].endswith("there is no other, so the run starts anew")


def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10, resumable=False)
    with pytest.raises(UserError, match="saved with save_only_model, without the optimizer"):
        whole_checkpoint(tmp_path)


def test_what_came_after_is_set_aside_and_can_be_gone_back_to(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        make_checkpoint(tmp_path, step, f"old {step}")
    folder = RunFolder(tmp_path)
    assert folder.go_on(tmp_path / "checkpoint-10") == tmp_path / "checkpoint-10"
    assert names(tmp_path) == ["checkpoint-10"]
    make_checkpoint(tmp_path, 20, "new 20")
    kept = tmp_path / "set-aside" / "checkpoint-20"
    assert stage_of(kept) == 0
    assert folder.go_on(kept) == tmp_path / "checkpoint-20"  # the old branch again
    assert text_of(tmp_path / "checkpoint-20") == "old 20"
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20"]
    folder.go_on(tmp_path / "checkpoint-10")
    aside = sorted(path.name for path in (tmp_path / "set-aside").iterdir())
    assert aside == ["checkpoint-20", "checkpoint-20.2", "checkpoint-30"]
    folder.go_on(None)
    assert names(tmp_path) == []


def test_a_checkpoint_of_another_run_leaves_none_of_this_one(tmp_path: Path) -> None:
    foreign = make_checkpoint(tmp_path / "other", 50)
    make_checkpoint(tmp_path / "run", 10)
    assert RunFolder(tmp_path / "run").go_on(foreign) == foreign
    assert names(tmp_path / "run") == []
    assert names(tmp_path / "other") == ["checkpoint-50"]


@pytest.mark.parametrize("cut", ["before", "between", "unsealed"])
def test_a_kill_while_a_checkpoint_is_replaced_leaves_a_whole_one(cut: str, tmp_path: Path) -> None:
    old = make_checkpoint(tmp_path, 10, "old")
    new = make_checkpoint(tmp_path / SAVING, 10, "new")
    if cut == "between":
        old.rename(new.with_name("replaced"))
    if cut == "unsealed":
        (new / "manifest.json").unlink()
    finish_saving(tmp_path / SAVING)
    assert text_of(tmp_path / "checkpoint-10") == ("old" if cut == "unsealed" else "new")
    assert not (tmp_path / SAVING).exists()


def test_a_replaced_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10, "old")
    put_in_place(make_checkpoint(tmp_path / SAVING, 10, "new"), tmp_path)
    assert text_of(tmp_path / "checkpoint-10") == "new"
    assert not list((tmp_path / SAVING).iterdir())


def test_a_save_that_fails_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10, "old")

    def write(scratch: Path) -> None:
        shutil.copytree(tmp_path / "checkpoint-10", scratch / "checkpoint-10")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Saving(tmp_path, "checkpoint-10", write, dict, Runtime())
    assert whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert text_of(tmp_path / "checkpoint-10") == "old"


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [(None, None, [5, 9, 10, 11]), (2, None, [10, 11]), (1, None, [11]), (1, 9, [9, 11]),
     (2, 9, [9, 11]), (3, 5, [5, 10, 11]), (1, 11, [11]), (1, 3, [11])],
)  # fmt: skip
def test_the_newest_and_the_best_are_never_deleted(
    limit: int | None, best: int | None, kept: list[int], tmp_path: Path
) -> None:
    for step in (11, 5, 10, 9):  # whatever the times of files say
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    prune(tmp_path, limit, str(tmp_path / f"checkpoint-{best}") if best else None)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]
    assert (tmp_path / "checkpoint-old").exists()


def test_what_is_set_aside_twice_keeps_both(tmp_path: Path) -> None:
    for _ in range(2):
        set_aside(make_checkpoint(tmp_path, 10))
    found = sorted(path.name for path in (tmp_path / "set-aside").iterdir())
    assert found == ["checkpoint-10", "checkpoint-10.2"]


def test_the_best_model_is_the_whole_one_of_two_places(tmp_path: Path) -> None:
    """Beside the checkpoint, or where that knows it; of two that are damaged, beside it."""
    last = make_checkpoint(tmp_path / "new", 20)
    known = make_checkpoint(tmp_path / "old", 10)
    (last / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": str(known)}))
    beside = tmp_path / "new" / "checkpoint-10"
    assert find_best(last, 10) == (known, None)  # there is none beside it
    make_checkpoint(tmp_path / "new", 10)
    assert find_best(last, 10) == (beside, None)
    flip(beside / WEIGHTS)
    assert find_best(last, 10) == (known, None)
    flip(known / WEIGHTS)
    found, reason = find_best(last, 10)
    assert found == beside and reason is not None
