"""What counts as a hang and what does not, and which rank is named."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orpo_dist.base.exits import COMMAND
from orpo_dist.engines.runtime import Runtime
from orpo_dist.runs.folder import RunFolder
from orpo_dist.runs.heartbeats import DONE, FOLDER, UNTIMED, Beat, Heartbeats
from orpo_dist.training.watch import STEP, Watch

TIMEOUT = 0.6
CONTROL = SimpleNamespace(should_save=False, should_evaluate=False, should_training_stop=False)


class Alone(Watch):
    """A watch that writes down how it would have ended the job."""

    found: str | None = None

    def _end(self, sentence: str) -> None:
        self.found = self.found or sentence

    def say(self, event: str, step: int = 1, **control: bool) -> None:
        flags = SimpleNamespace(**{**vars(CONTROL), **control})
        getattr(self, event)(None, SimpleNamespace(global_step=step), flags)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Alone]:
    COMMAND.set()
    with Alone(RunFolder(tmp_path), Runtime(), TIMEOUT) as watch:
        watch.say("on_train_begin", 0)
        watch.say("on_step_begin", 0)
        watch.say("on_step_end", 1)
        watch.say("on_step_begin", 1)
        yield watch
    COMMAND.clear()
    assert not (tmp_path / FOLDER).exists()


def test_a_step_without_an_end(watch: Alone) -> None:
    time.sleep(3 * TIMEOUT)
    assert watch.found is not None
    assert "step 2 has not ended for " in watch.found


def test_data_that_do_not_come(watch: Alone) -> None:
    watch.say("on_step_end", 2)
    time.sleep(3 * TIMEOUT)
    assert watch.found is not None
    assert "the wait for data after step 2" in watch.found


def test_an_evaluation_that_stands_still(watch: Alone) -> None:
    watch.say("on_step_end", 2, should_evaluate=True)
    watch.say("on_prediction_step", 2)
    time.sleep(3 * TIMEOUT)
    assert watch.found is not None
    assert "a batch of the evaluation" in watch.found


def test_a_long_evaluation_is_no_hang(watch: Alone) -> None:
    watch.say("on_step_end", 2, should_evaluate=True)
    for _ in range(12):
        watch.say("on_prediction_step", 2)
        time.sleep(TIMEOUT / 4)
    assert watch.found is None


@pytest.mark.parametrize(
    ("event", "control"),
    [
        ("on_train_begin", {}),  # loading, compiling
        ("on_step_end", {"should_save": True}),
        ("on_step_end", {"should_evaluate": True}),
        ("on_epoch_end", {"should_save": True}),
        ("on_step_end", {"should_training_stop": True}),
        ("on_evaluate", {}),
        ("on_train_end", {}),
    ],
)
def test_what_may_take_long(watch: Alone, event: str, control: dict[str, bool]) -> None:
    watch.say(event, 2, **control)
    time.sleep(3 * TIMEOUT)
    assert watch.found is None


def test_the_first_step_may_compile(watch: Alone) -> None:
    watch.say("on_train_begin", 2)
    watch.say("on_step_begin", 2)
    time.sleep(3 * TIMEOUT)
    assert watch.found is None


def test_steps_that_are_long_as_a_rule(watch: Alone) -> None:
    watch._longest[STEP] = 10 * TIMEOUT
    time.sleep(3 * TIMEOUT)
    assert watch.found is None


def test_a_process_that_is_not_a_commands_own_is_left_alone(tmp_path: Path) -> None:
    with Alone(RunFolder(tmp_path), Runtime(), TIMEOUT) as watch:
        watch.say("on_step_begin", 1)
        watch.say("on_step_begin", 2)
        time.sleep(2 * TIMEOUT)
    assert watch.found is None


# --- several ranks


def of_two(folder: Path) -> Alone:
    """Rank 0 of two, in step 3, which looks only when it is told to."""
    watch = Alone(RunFolder(folder), Runtime(world_size=2), TIMEOUT)
    watch.beats.folder.mkdir()
    watch._first = False
    watch.say("on_step_begin", 2)
    return watch


def judged_for(watch: Alone, seconds: float, **beat: Any) -> list[str]:
    """What rank 0 finds meanwhile, where rank 1 shows signs of life."""
    found = []
    deadline, number = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        number += 1
        one = Beat(1, number, **{"step": 3, "doing": STEP, **beat})
        (watch.beats.folder / "rank-1").write_text(json.dumps(asdict(one)))
        found.append(watch._judge())
        time.sleep(TIMEOUT / 20)
    return [sentence for sentence in found if sentence]


def test_a_wait_for_another_rank_that_saves_does_not_count(tmp_path: Path) -> None:
    """Nor once that one has come after it, and computes its part of the step."""
    watch = of_two(tmp_path)
    assert judged_for(watch, 3 * TIMEOUT, step=2, doing=UNTIMED) == []
    assert judged_for(watch, TIMEOUT / 4) == []
    watch.say("on_step_end", 3)
    assert watch._longest[STEP] < TIMEOUT
    watch.say("on_step_begin", 3)
    assert "step 4 has not ended" in judged_for(watch, 4 * TIMEOUT, step=4)[0]


def test_the_rank_that_is_behind_is_named(tmp_path: Path) -> None:
    found = judged_for(of_two(tmp_path), 2 * TIMEOUT, step=2, doing="the wait for data")
    assert found[0].startswith("rank 1: has not begun step 3 for ")


def test_a_rank_without_any_sign_is_named(tmp_path: Path) -> None:
    watch, found = of_two(tmp_path), None
    while found is None:
        time.sleep(TIMEOUT / 20)
        found = watch._judge()
    assert found.startswith("rank 1: no sign of life")


class Ranks:
    """Rank 0's look at three others, whose beats are written here."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.beats = Heartbeats(folder, 0, 4)
        self.others = [Beat(rank, 1, 7, STEP, "node1", 100 + rank) for rank in (1, 2, 3)]

    def write(self, **changes: Any) -> None:
        for at, beat in enumerate(self.others):
            changed = {"number": beat.number + 1, **changes.get(f"rank{beat.rank}", {})}
            self.others[at] = replace(beat, **changed)
            path = self.beats.folder / f"rank-{beat.rank}"
            path.write_text(json.dumps(asdict(self.others[at])))
        self.beats.look_at([1, 2, 3])


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    return Ranks(tmp_path / "beats")


def test_a_rank_without_new_beats_is_quiet(ranks: Ranks) -> None:
    ranks.write()
    for _ in range(3):
        time.sleep(0.1)
        ranks.write(rank2={"number": 2})
    assert [str(seen.beat) for seen in ranks.beats.quiet(0.25)] == ["rank 2 (process 102 on node1)"]
    ranks.write(rank2={"number": 2, "doing": DONE})
    time.sleep(0.3)
    ranks.write(rank2={"number": 2})
    assert ranks.beats.quiet(0.25) == []


def test_a_rank_that_is_behind_and_one_that_saves(ranks: Ranks) -> None:
    ranks.write(rank3={"step": 6})
    assert [seen.beat.rank for seen in ranks.beats.behind(7)] == [3]
    assert not ranks.beats.excused
    ranks.write(rank1={"doing": UNTIMED})
    assert ranks.beats.excused


def test_one_verdict(ranks: Ranks) -> None:
    assert ranks.beats.verdict() is None
    assert ranks.beats.pronounce("rank 2 hangs")
    assert not ranks.beats.pronounce("rank 3 hangs")
    assert ranks.beats.verdict() == "rank 2 hangs"
