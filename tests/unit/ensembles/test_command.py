"""``orpo-dist ensemble``: answers, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orpo_dist import load_ensemble
from orpo_dist.cli import main
from tests.unit.ensembles.members import EVAL


def test_generate_command(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    words = ["ensemble", "generate", *map(str, three), "--prompt", "Hi", "--max-new-tokens", "5"]
    assert main(words) == 0
    expected = load_ensemble(three).generate("Hi", max_new_tokens=5)
    assert capsys.readouterr().out == expected + "\n"
    many = [*words, "--prompt", "Why is the sky blue?", "--prompt", "x", "--batch-size", "2"]
    assert main([*many, "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    singles = load_ensemble(three)
    for row in rows:
        assert row["answer"] == singles.generate(row["prompt"], max_new_tokens=5)
    assert len(rows) == 3 and capsys.readouterr().out.count("\n> ") == 3
    assert main([*words, "--method", "vote", "--all", "--json", str(out)]) == 0
    row = json.loads(out.read_text())
    assert row["answer"] == max(row["candidates"], key=lambda c: c["score"])["text"]
    assert capsys.readouterr().out.count(f"[{three[0]}, -") == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["generate", "a", "a", "--prompt", "x"], "member a: is given twice"),
        (["generate", "a", "b", "--prompt", "x", "--weights", "1"], "1 numbers for 2 members"),
        (["generate", "a", "b", "--prompt", "x", "--weights", "1", "-1"], "must be above 0"),
        (["generate", "a", "b", "--prompt", "x", "--weights", "1", "inf"], "above 0 and finite"),
        (["generate", "a", "b"], "nothing to answer"),
        (["create", f"{__file__}/x", "a", "b"], "cannot be written (Not a directory)"),
        (["generate", "a", "--prompt", "x", "--batch-size", "0"], "--batch-size 0: is out of"),
        (["generate", "a", "--prompt", "x", "--all"], "are for vote and best_of"),
        (["evaluate", "a", "b"], "data_path is missing"),
        (["evaluate", "./no", "--data-path", EVAL], "model ./no: no such folder"),
        (["soup", "out", "a", "b", "--weights", "1", "2"], "uniform takes none"),
        (["soup", "out", "a", "b", "--method", "greedy"], "greedy needs pairs to judge by"),
        (["soup", "out", "a", "b", "--method", "ties", "--density", "0"], "density 0"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", *words]) == 2
    captured = capsys.readouterr()
    assert part in captured.err and captured.err.count("\n") == 1
