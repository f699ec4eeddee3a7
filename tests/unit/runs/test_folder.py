"""Files of a run folder: whole at any moment, read where they are whole, and left where they are
someone's work."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import ORPOConfig, UserError
from orpo_dist.runs.folder import (
    RunFolder,
    read_json,
    read_metrics,
    saved_step,
    training_data,
    write_json,
    write_text,
)

OLD, NEW = {"status": "running"}, {"status": "completed", "note": "é" * 10_000}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(OLD))
    return path


def test_a_reader_at_work_reads_the_old_file_to_its_end(file: Path) -> None:
    """The file is replaced, not written over: who has it open keeps what it was."""
    with file.open(encoding="utf-8") as reader:
        write_json(file, NEW)
        assert json.loads(reader.read()) == OLD
    assert read_json(file) == NEW
    assert file.read_text(encoding="utf-8").endswith("}\n")
    assert [path.name for path in file.parent.iterdir()] == ["run.json"]


def test_the_new_file_is_whole_before_it_has_the_name(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    replace = Path.replace

    def watched(self: Path, target: Any) -> Path:
        seen.append((read_json(Path(target)), read_json(self), self.parent == file.parent))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_json(file, NEW)
    assert seen == [(OLD, NEW, True)]  # of one folder, so of one file system: no copy


def test_a_disk_that_fills_half_way_leaves_the_old_file_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Path, text: str, **options: Any) -> int:
        with self.open("w", encoding="utf-8") as opened:
            opened.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    for write, content in ((write_json, NEW), (write_text, "x" * 100)):
        with pytest.raises(OSError, match="No space left"):
            write(file, content)  # type: ignore[operator]
        assert read_json(file) == OLD
        assert [path.name for path in file.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize("text", [None, "", '{"a": 1', "[1]", "\xff\xfe"])
def test_what_is_no_object_reads_as_nothing(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    assert read_json(path) == {}


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_the_report_on_the_training_data_is_the_last_stage_s() -> None:
    first, second = {"pairs": 1}, {"pairs": 2}
    assert training_data({"train": first, "valid": {"pairs": 9}}) == first
    assert training_data({"stage 1 train": first, "stage 2 train": second}) == second
    assert training_data({"valid": {}}) is None and training_data({"train": 7}) is None


# --- starting over, going on


def config(folder: Path, **changes: Any) -> ORPOConfig:
    return ORPOConfig(model="m", data_path="d.jsonl", project_name=str(folder), **changes)


def test_what_is_no_run_is_not_written_over(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.yaml"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UserError, match=f"its {name} would be overwritten"):
            RunFolder(folder).open(config(folder, overwrite=True))
        assert (folder / name).read_text() == "mine"


def test_a_failed_attempt_is_cleared_but_for_what_is_not_a_run_s(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.run, {"status": "failed"})
    folder.metrics.write_text("{}\n")
    folder.tensorboard.mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert folder.open(config(tmp_path)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("left", ["model.safetensors", "running"])
def test_work_is_left_unless_overwrite_says_otherwise(left: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.run, {"status": left})
    if left != "running":
        (tmp_path / left).touch()
    settings = {"resume_from_checkpoint": "never"}
    with pytest.raises(UserError, match=f"^project_name {tmp_path}: "):
        folder.open(config(tmp_path, **settings))
    assert folder.run.exists()
    (tmp_path / "README.md").write_text("my own page")
    folder.open(config(tmp_path, overwrite=True, **settings))
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_steps_of_finished_stages_count_as_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert saved_step(folder) == 0 and folder.finished_stages() == []
    for number in (1, 2):
        folder.stage(number).path.mkdir()
        folder.finish_stage(number, steps=10 * number)
    assert [stage["steps"] for stage in folder.finished_stages()] == [10, 20]
    assert saved_step(folder) == 30
    silent = RunFolder(tmp_path, writes=False)  # all ranks but 0
    silent.finish_stage(3, steps=1)
    assert len(silent.finished_stages()) == 2
