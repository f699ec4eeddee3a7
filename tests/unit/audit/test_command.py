"""``orpo-dist data audit`` through the command line: its files, its page and its mistakes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from orpo_dist import cli
from orpo_dist.audit.rules import RULES
from tests.conftest import ROOT
from tests.unit.audit.test_audit import FIRES, clean_rows, row
from tests.unit.test_cli import mistake

WriteRows = Callable[..., Path]


def run_audit(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert cli.main(["data", "audit", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def dropped(path: Path) -> list[tuple[int, str]]:
    with path.open(encoding="utf-8", newline="") as rows:
        return [(int(r["row"].rpartition(":")[2]), r["reason"]) for r in csv.DictReader(rows)]


@pytest.fixture
def defects(write_rows: WriteRows) -> Path:
    """Every planted defect that needs no second file, after forty good rows."""
    return write_rows([*clean_rows(), *(each for _, rows, _ in FIRES for each in rows)])


def test_the_cleaned_file_holds_the_rest_unchanged(
    tmp_path: Path, write_rows: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{**each, "id": n, "ø": [None, {"x": 1.5}]} for n, each in enumerate(clean_rows())]
    bad = [good[3], row("Q", "yes", "no"), row("Q", "no", "yes"), "{", row("Q", "", "no"),
           row("R", "yes", "no</s>")]  # fmt: skip
    path, out = write_rows([*good, *bad]), tmp_path / "good.jsonl"
    shown = run_audit(capsys, path, "--clean", out)
    assert lines(out) == [*good, row("R", "yes", "no</s>")]
    assert dropped(tmp_path / "good.dropped.csv") == [
        (41, "duplicate"), (42, "contradictory"), (43, "contradictory"), (44, "not_json"),
        (45, "empty_chosen"),
    ]  # fmt: skip
    assert f"{out}: 41 rows" in shown and "5 dropped" in shown
    again = run_audit(capsys, out, "--clean", tmp_path / "again.jsonl")
    assert "0 dropped" in again
    assert (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()


def test_drop_chooses_the_rules(
    tmp_path: Path, write_rows: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*clean_rows(), clean_rows()[0], row("Q", "yes", "no</s>")]
    out = tmp_path / "good.jsonl"
    run_audit(capsys, write_rows(rows), "--clean", out, "--drop", "double_eos")
    assert dropped(tmp_path / "good.dropped.csv") == [(42, "double_eos")]
    assert lines(out) == rows[:-1]


def test_other_forms_are_cleaned_as_they_are(
    tmp_path: Path, write_rows: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [{k: r[k] for k in ("chosen", "rejected")} for r in clean_rows()]
    asked = [{"system": "S", "question": r["prompt"]} for r in clean_rows()]
    good = [{**one, **other} for one, other in zip(asked, sides, strict=True)]
    out = tmp_path / "good.jsonl"
    assert "40 pairs in 41 rows" in run_audit(
        capsys, write_rows([*good, {**good[0], "chosen": ""}]), "--clean", out
    )
    assert lines(out) == good
    assert dropped(tmp_path / "good.dropped.csv") == [(41, "empty_chosen")]


def test_of_ranked_lists_the_pairs_that_stay_are_written(
    tmp_path: Path, write_rows: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [(r["prompt"], r["chosen"], r["rejected"]) for r in clean_rows()]
    lists = [
        {"prompt": p, "answers": [{"answer": c, "rank": 1}, {"answer": r, "rank": 2}], "id": n}
        for n, (p, c, r) in enumerate(texts)
    ]
    lists[3]["answers"].append({"answer": "", "rank": 3})
    lists[4]["answers"].pop()
    out = tmp_path / "good.jsonl"
    run_audit(capsys, write_rows(lists), "--clean", out)
    assert lines(out) == [
        {"id": n, "prompt": p, "chosen": c, "rejected": r}
        for n, (p, c, r) in enumerate(texts)
        if n != 4
    ]
    assert dropped(tmp_path / "good.dropped.csv") == [(4, "empty_rejected"), (5, "unranked")]


def test_json_names_every_flagged_row(
    tmp_path: Path, defects: Path, capsys: pytest.CaptureFixture[str], tiny_model_dir: Path
) -> None:
    out = tmp_path / "audit.json"
    shown = run_audit(
        capsys, defects, "--model", tiny_model_dir, "--valid-data-path", defects, "--json", out
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["unit"] == "tokens" and found["left_out"] == []
    for finding in found["findings"]:
        assert finding["sentence"] in shown and finding["advice"] in shown
        if finding["rule"] != "length_bias":
            assert len(finding["rows"]) == finding["count"]
    leaked = next(f for f in found["findings"] if f["rule"] == "leaked")
    assert leaked["count"] == found["rows"] - sum(
        f["count"] for f in found["findings"] if f["rule"] in
        ("not_json", "empty_chosen", "identical_answers", "unknown_role")
    )  # fmt: skip
    now = found["truncation"][0]
    assert now["setting"] == "now: prompt 128, sequence 512"
    assert now["share_cut"] == now["pairs_cut"] / found["pairs"]


def test_the_page_is_whole_and_safe(
    tmp_path: Path, write_rows: WriteRows, capsys: pytest.CaptureFixture[str], tiny_model_dir: Path
) -> None:
    evil = "<script>alert(1)</script>\x1b[2J$\\frac$"
    rows = [{**each, "category": evil} for each in clean_rows()]
    rows += [row(evil + " <|im_start|>", evil, "no", category="b"), rows[0]]
    path, page = write_rows(rows, "<img src=x>.jsonl"), tmp_path / "audit.html"
    flags = ("--model", tiny_model_dir, "--max-prompt-length", 64, "--max-completion-length", 4)
    shown = run_audit(capsys, path, "--html", page, *flags)
    assert "\x1b" not in shown
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text
    assert "&lt;script&gt;" in text and "&lt;img src=x&gt;" in text
    assert "http" not in text.partition("<svg")[0]  # nothing is fetched
    drawings = [part.partition("</svg>")[0] for part in text.split("<svg")[1:]]
    assert drawings
    for drawing in drawings:
        ElementTree.fromstring(f"<svg{drawing}</svg>")  # noqa: S314 (our own)
    for section in ("What to do", "Lengths in tokens", "length limit would cost", "Categories"):
        assert section in text


def test_a_run_config_says_what_to_audit(
    tmp_path: Path, write_rows: WriteRows, write_yaml: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [{"ask": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in clean_rows()]
    config = write_yaml(
        f"data_path: {write_rows(rows)}\nprompt_text_column: ask\ntext_column: good\n"
        "rejected_text_column: bad\n"
    )
    assert run_audit(capsys, "--config", config).startswith("40 pairs in 40 rows")
    flags = ("--prompt-text-column", "ask", "--text-column", "good", "--rejected-text-column")
    assert "40 pairs" in run_audit(capsys, write_rows(rows), *flags, "bad")


def test_mistakes_are_one_line(
    tmp_path: Path, write_rows: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_rows(clean_rows()))
    before = Path(path).read_bytes()
    for arguments, part in (
        ([], "nothing to audit"),
        (["./none.jsonl"], "data file ./none.jsonl: does not exist"),
        ([path, "--valid-data-path", "./none.jsonl"], "data file ./none.jsonl"),
        ([path, "--valid-split", "test"], "is a single file and has no splits"),
        ([path, "--clean", path], "is one of the files"),
        ([path, "--json", f"{tmp_path}/x", "--html", f"{tmp_path}/x"], "is one of the files"),
        ([path, "--clean", str(tmp_path / "x.csv")], "must end in .jsonl"),
        ([path, "--html", "./no/where.html"], "its folder does not exist"),
        ([path, "--json", str(tmp_path)], "is a folder"),
        ([path, "--drop", "duplicate"], "pass --clean FILE"),
        ([path, "--clean", str(tmp_path / "x.jsonl"), "--drop", "dupes"], "no such rule"),
        ([path, "--model", "./nowhere"], "model ./nowhere"),
        ([path, "--text-column", "good"], "has no column 'good'"),
        ([path, "--lr", "1"], "this command does not take it"),
    ):
        assert part in mistake(capsys, "data", "audit", *arguments)
    assert Path(path).read_bytes() == before
    assert "VERB" in mistake(capsys, "data")


def test_the_documentation_names_every_rule() -> None:
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    for name, rule in RULES.items():
        line = next((line for line in text.splitlines() if line.startswith(f"| `{name}`")), None)
        assert line is not None, name
        assert rule.fires in line, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hh_harmless_train", {"markers": 21, "role_trouble": 4, "leaked": 257, "leaked_near": 1}),
        ("rasbt_polite_train", {"identical_answers": 6}),
        ("lf_dpo_en_demo", {"duplicate": 5}),
    ],
)
def test_real_files(
    name: str,
    expected: dict[str, int],
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = shared / "data", tmp_path / "audit.json"
    held_out = data / "hh_harmless_raw_transcripts.jsonl"  # of the same source as the first
    run_audit(capsys, data / f"{name}.jsonl", "--valid-data-path", held_out, "--json", out)
    found = json.loads(out.read_text(encoding="utf-8"))["findings"]
    assert {finding["rule"]: finding["count"] for finding in found} == expected
