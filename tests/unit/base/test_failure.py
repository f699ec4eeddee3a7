"""Who speaks when a process of several fails, and what the launcher is left."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orpo_dist.base import failure
from orpo_dist.base.failure import GRACE, crash, rank_among_others, say


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, which do not pass."""
    found: list[float] = []
    clock = SimpleNamespace(sleep=found.append, time=lambda: 7.9)
    monkeypatch.setattr(failure, "time", clock)
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    return found


def among(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_ranks(waits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_among_others() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert rank_among_others() is None
    among(monkeypatch, 1)
    assert rank_among_others() == 1
    monkeypatch.delenv("RANK")
    assert rank_among_others() == 0


@pytest.mark.parametrize(("rank", "waited", "word"), [
    (None, [], ""), (0, [], ""), (1, [GRACE], "rank 1: "),
])  # fmt: skip
def test_a_line_is_said_by_rank_0_first(
    rank: int | None, waited: list[float], word: str, waits: list[float],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if rank is not None:
        among(monkeypatch, rank)
    say("no")
    assert capsys.readouterr().err == f"orpo-dist: {word}no\n"
    assert waits == waited


def test_the_guilty_rank_speaks_at_once_and_tells_the_launcher(
    waits: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    among(monkeypatch, 1)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    crash(raised(ValueError("on fire")))
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "orpo-dist: rank 1 failed:" and rest[-1] == "ValueError: on fire"
    left = json.loads((tmp_path / "error.json").read_text())["message"]
    assert left["message"] == "ValueError: on fire"
    assert (
        left["extraInfo"]["timestamp"] == "7" and "Traceback" in left["extraInfo"]["py_callstack"]
    )
    assert waits == []


@pytest.mark.parametrize("words", failure.LOST)
def test_who_has_lost_the_others_waits_and_is_brief(
    words: str,
    waits: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    among(monkeypatch, 0)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    crash(raised(RuntimeError(f"oh: {words}!")))
    assert capsys.readouterr().err == f"orpo-dist: rank 0 lost the others: oh: {words}!\n"
    assert waits == [GRACE] and not (tmp_path / "error.json").exists()


def test_alone_there_is_nothing_but_the_traceback(
    waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    crash(raised(RuntimeError("gloo is not the matter here")))
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith("gloo is not the matter here\n")
    assert waits == []
