"""Beats of ranks: new ones, missing ones, and what may take long."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from orpo_dist.runs import heartbeats
from orpo_dist.runs.heartbeats import DONE, UNTIMED, Heartbeats


class Clock:
    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeats, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def ranks(folder: Path, count: int = 3) -> list[Heartbeats]:
    return [Heartbeats(folder, rank, count) for rank in range(count)]


def names(beats: Heartbeats, seconds: float) -> list[int]:
    return [seen.beat.rank for seen in beats.quiet(seconds)]


def test_a_rank_is_quiet_from_its_last_new_beat_on(tmp_path: Path, clock: Clock) -> None:
    zero, one, two = ranks(tmp_path)
    one.beat(1, "a step")
    zero.look_at([1, 2])
    assert zero.seen[2].beat.doing == UNTIMED  # not heard of yet
    assert zero.seen[1].beat.host == socket.gethostname() and zero.seen[1].beat.pid == os.getpid()
    clock.now += 10
    assert names(zero, 10) == [] and names(zero, 9.9) == [1, 2]
    zero.look_at([1, 2])  # the same beat is no new one
    assert names(zero, 9.9) == [1, 2]
    one.beat(1, "a step")  # nor is its step any further, but its process runs
    two.beat(1, "a step")
    zero.look_at([1, 2])
    assert names(zero, 9.9) == []


def test_who_is_done_may_be_quiet(tmp_path: Path, clock: Clock) -> None:
    zero, one, _ = ranks(tmp_path)
    one.beat(5, DONE)
    zero.look_at([1])
    clock.now += 1000
    assert names(zero, 1) == []
    assert zero.done([1]) and not zero.done([1, 2])
    one.beat(5, "a step")
    assert not zero.done([1]) and zero.done([])


def test_who_is_not_looked_at_is_forgotten(tmp_path: Path, clock: Clock) -> None:
    zero, one, two = ranks(tmp_path)
    for rank in (one, two):
        rank.beat(1, "a step")
    zero.look_at([1, 2])
    zero.look_at([2])
    assert list(zero.seen) == [2]
    clock.now += 5
    zero.forget()
    zero.look_at([2])
    assert names(zero, 4) == []  # its silence counts from here


def test_a_beat_that_cannot_be_read_or_written_changes_nothing(
    tmp_path: Path, clock: Clock
) -> None:
    zero, one, _ = ranks(tmp_path)
    one.beat(3, "a step")
    zero.look_at([1])
    for content in ("", "{", '{"rank": 1}', "[]"):
        (tmp_path / "rank-1").write_text(content)
        zero.look_at([1])
        assert zero.seen[1].beat.step == 3
    Heartbeats(tmp_path / "missing", 0, 1).beat(1, "a step")
    assert not (tmp_path / "missing").exists()


def test_who_is_behind_and_who_is_excused(tmp_path: Path, clock: Clock) -> None:
    zero, one, two = ranks(tmp_path)
    one.beat(3, "a step")
    two.beat(4, "a step")
    zero.look_at([1, 2])
    assert [seen.beat.rank for seen in zero.behind(4)] == [1] and not zero.excused
    for doing in (UNTIMED, DONE):
        two.beat(4, doing)
        zero.look_at([1, 2])
        assert zero.excused


def test_the_first_verdict_counts(tmp_path: Path) -> None:
    zero, one, _ = ranks(tmp_path)
    assert zero.verdict() is None
    assert zero.pronounce("it hangs") and not one.pronounce("it does not")
    assert one.verdict() == "it hangs"
    assert Heartbeats(tmp_path / "missing", 0, 1).pronounce("x")  # each finds out by itself
