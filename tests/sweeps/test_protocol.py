"""The files of a sweep: what is written is read back, and what is missing or broken is nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.sweeps import protocol
from orpo_dist.sweeps.protocol import (
    Failure,
    Place,
    Trial,
    forget_failure,
    forget_placement,
    read_failure,
    read_place,
    read_placement,
    read_sweep,
    read_trial,
    read_trials,
    round_folder,
    rounds_of,
    write_placement,
    write_sweep,
)
from orpo_dist.sweeps.running.shared import refuse_unfit
from orpo_dist.sweeps.searched.files import load_sweep
from orpo_dist.sweeps.searched.space import Space

CONTENT: dict[str, Any] = {"space": {"orpo_alpha": {"grid": [0, 1]}}, "repeats": 2}


def test_a_sweep_is_read_back(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the folder of a sweep \(it has no sweep.yaml\)"):
        read_sweep(tmp_path)
    sweep = load_sweep(CONTENT)
    write_sweep(tmp_path, sweep)
    assert read_sweep(tmp_path) == sweep


def test_a_failure_is_read_back_and_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "a"
    assert read_failure(folder) is None
    Failure("out of memory", final=True, rank=1, traceback="…").save(folder)
    assert read_failure(folder) == Failure("out of memory", final=True)
    (folder / protocol.FAILURE).write_text('{"reason": "cut')
    assert read_failure(folder) is None
    forget_failure(folder)
    forget_failure(folder)  # there is none any more
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["0af3", None])
def test_a_placement_is_read_back_and_forgotten(tmp_path: Path, name: str | None) -> None:
    assert read_placement(tmp_path / "a") is None
    write_placement(tmp_path / "a", name)
    assert read_placement(tmp_path / "a") == name
    forget_placement(tmp_path / "a")
    assert read_placement(tmp_path / "a") is None


def test_a_place_is_read_back(tmp_path: Path) -> None:
    assert read_place(tmp_path) is None
    Place("003", "/runs/checkpoint-5").save(tmp_path)
    assert read_place(tmp_path) == Place("003", "/runs/checkpoint-5")


def test_a_record_may_hold_more_than_this_version_knows(tmp_path: Path) -> None:
    trial = Trial("a", {"lr": 1e-5}, step=3)
    trial.save(tmp_path)
    folder = tmp_path / "trials" / "a"
    content = json.loads((folder / protocol.RECORD).read_text())
    (folder / protocol.RECORD).write_text(json.dumps({**content, "colour": "red"}))
    assert read_trial(folder) == trial
    (folder / protocol.RECORD).write_text("{}")
    assert read_trial(folder) is None and read_trials(tmp_path) == []


def test_rounds_that_were_called_stages_are_still_found(tmp_path: Path) -> None:
    assert round_folder(tmp_path, 2) == tmp_path / "round-2"
    (tmp_path / "stage-2").mkdir()
    (tmp_path / "round-3").mkdir()
    assert round_folder(tmp_path, 2) == tmp_path / "stage-2"
    assert rounds_of(tmp_path) == [tmp_path, tmp_path / "round-3", tmp_path / "stage-2"]


def test_points_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn, checked one by one and handed on."""
    made: Counter[str] = Counter()
    draw = Space.points

    def counted(self: Space, *arguments: Any, **more: Any) -> Any:
        made["points"] += 1
        return draw(self, *arguments, **more)

    monkeypatch.setattr(Space, "points", counted)
    base = {"model": "m", "data_path": ["d"], "valid_split": 0.1}
    sweep = load_sweep({**CONTENT, "base": base})
    refuse_unfit(sweep)
    assert sweep.number_of_trials == len(sweep.points) == 4
    assert made["points"] == 1
