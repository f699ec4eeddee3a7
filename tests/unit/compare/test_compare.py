"""``orpo-dist compare``: the sheet and its key, the tally against hand-made figures."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_dist import UserError
from orpo_dist.cli import main
from orpo_dist.compare.page import comparison_page
from orpo_dist.compare.sheet import Item, Sheet, make_sheet, read_answers
from orpo_dist.compare.tally import format_tally, krippendorff_alpha, read_ratings, tally

EVIL = [
    "</pre><script>window.hacked = 1</script>",
    "<img src=x onerror=\"window.hacked = 2\"> <b>bold</b>",
    "--></section><style>pre { display: none }</style>",
    "\n\u202eright to left\u0000 \ud83d",
]  # fmt: skip


def sheet_of(count: int = 6, seed: int = 0) -> Sheet:
    prompts = [f"prompt {n}" for n in range(count)]
    answers = [[f"{name} answers {n}" for n in range(count)] for name in "ab"]
    return make_sheet(("model-a", "model-b"), prompts, answers, seed)


def ratings_file(path: Path, sheet: Sheet, rater: str, entries: list[Any]) -> Path:
    keys = ("item", "choice", "left", "right")
    rows = [dict(zip(keys, entry, strict=False)) for entry in entries]
    path.write_text(json.dumps({"comparison": sheet.id, "rater": rater, "ratings": rows}))
    return path


def choice_for(item: Item, better: str) -> str:
    """The side on which ``better`` (a, b or tie) stands."""
    if better == "tie":
        return "tie"
    return "left" if (better == "b") == item.swapped else "right"


def test_the_sheet_is_shuffled_and_blind() -> None:
    sheet = sheet_of(40)
    assert [item.prompt for item in sheet.items] != [f"prompt {n}" for n in range(40)]
    assert 10 < sum(item.swapped for item in sheet.items) < 30
    assert sheet == sheet_of(40) and sheet.id != sheet_of(40, seed=1).id
    for item in sheet.items:
        number = item.prompt.removeprefix("prompt ")
        assert (item.a, item.b) == (f"a answers {number}", f"b answers {number}")
    page = comparison_page(sheet)
    assert "model-a" not in page and "model-b" not in page and "swapped" not in page
    assert page.index(sheet.items[0].sides[0]) < page.index(sheet.items[0].sides[1])


def test_equal_answers_are_left_out() -> None:
    sheet = make_sheet(("a", "b"), ["x", "y"], [["same ", "1"], ["same", "2"]], 0)
    assert [item.prompt for item in sheet.items] == ["y"]
    with pytest.raises(UserError, match="same answer to every prompt"):
        make_sheet(("a", "b"), ["x"], [["same"], ["same"]], 0)


def test_whatever_models_wrote_is_only_text() -> None:
    sheet = make_sheet(("a", "b"), EVIL, [EVIL, [text[::-1] for text in EVIL]], 0)
    page = comparison_page(sheet)
    assert page.count("<script") == 1 and page.count("<style") == 1 and "<img" not in page
    assert page.count("</section>") == len(EVIL)
    assert html.escape(EVIL[0]) in page
    page.encode("utf-8")
    assert "default-src 'none'" in page.partition("<body>")[0]
    assert "http://" not in page and "https://" not in page


def test_the_key_is_read_back_and_checked(tmp_path: Path) -> None:
    sheet, path = sheet_of(), tmp_path / "key.json"
    sheet.write_key(path)
    assert Sheet.read_key(path) == sheet
    whole = json.loads(path.read_text())
    assert whole["digest"] not in comparison_page(sheet)  # it would tell guesses from the truth
    path.write_text(path.read_text().replace("a answers 3", "something else"))
    with pytest.raises(UserError, match="it was changed"):
        Sheet.read_key(path)
    first, *others = whole["items"]
    turned = {**first, "a": first["b"], "b": first["a"], "swapped": not first["swapped"]}
    for edit in ({"a": whole["b"], "b": whole["a"]}, {"items": [turned, *others]}):
        path.write_text(json.dumps({**whole, **edit}))
        with pytest.raises(UserError, match="it was changed"):
            Sheet.read_key(path)
    del whole["digest"]
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="an older version wrote it"):
        Sheet.read_key(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        Sheet.read_key(path)


def test_tally_by_hand(tmp_path: Path) -> None:
    """One rater: b wins three, ties one, loses one of five; the sixth is not rated."""
    sheet = sheet_of()
    wanted = ["b", "b", "tie", "a", "b"]
    entries = []
    for number, better in enumerate(wanted):
        marks = {"a": 2, "b": 4}
        left, right = ("b", "a") if sheet.items[number].swapped else ("a", "b")
        choice = choice_for(sheet.items[number], better)
        entries.append((number, choice, marks[left], marks[right]))
    path = ratings_file(tmp_path / "r.json", sheet, "Ada", entries)
    found = tally(sheet, [read_ratings(path, sheet)])
    assert found["choices"] == {"b": 3, "tie": 1, "a": 1}
    assert (found["prompts"], found["win_rate"]) == (5, pytest.approx(0.7))
    assert (found["win_rate_low"], found["win_rate_high"]) == pytest.approx(
        (0.2988, 0.9274), abs=1e-3
    )
    assert found["p_value"] == pytest.approx(2 * (1 + 4) / 16)
    assert found["quality"]["difference"] == 2 and found["quality"]["a"] == 2
    assert found["agreement"] is None and found["raters"] == {"Ada": 5}
    lefts = [choice == "left" for _, choice, *_ in entries if choice != "tie"]
    assert found["left_rate"] == pytest.approx(np.mean(lefts))
    assert "win rate of b 0.700" in format_tally(found)


def test_two_raters_agree_or_not(tmp_path: Path) -> None:
    sheet = sheet_of()
    said = {"Ada": "bbaatb", "Bob": "bbaabb", "Eve": "aabbta"}
    full = {"b": "b", "a": "a", "t": "tie"}
    ratings = {
        name: read_ratings(
            ratings_file(
                tmp_path / f"{name}.json", sheet, name,
                [(n, choice_for(sheet.items[n], full[c])) for n, c in enumerate(choices)],
            ), sheet,
        )
        for name, choices in said.items()
    }  # fmt: skip
    together = tally(sheet, [ratings["Ada"], ratings["Bob"]])
    assert together["agreement"]["equal_choices"] == pytest.approx(5 / 6)
    assert together["agreement"]["krippendorff_alpha"] > 0.8
    assert together["prompts"] == 6  # two raters of a prompt are not two prompts
    assert together["win_rate"] == pytest.approx((1 + 1 + 0 + 0 + 0.75 + 1) / 6)
    apart = tally(sheet, [ratings["Ada"], ratings["Eve"]])
    assert apart["agreement"]["krippendorff_alpha"] < -0.5
    assert "Krippendorff's alpha" in format_tally(together)
    with pytest.raises(UserError, match="Ada stands in two files"):
        tally(sheet, [ratings["Ada"], ratings["Ada"]])


def test_krippendorff_against_published_values() -> None:
    """Krippendorff 2011, example C: four observers, twelve units, interval alpha 0.849."""
    nan = np.nan
    values = np.array([
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ])  # fmt: skip
    assert krippendorff_alpha(values) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(np.ones((2, 3))) is None


@pytest.mark.parametrize(
    "entry",
    [
        {"item": 6, "choice": "tie"}, {"item": -1, "choice": "tie"},
        {"item": True, "choice": "tie"},
        {"item": 0, "choice": "best"}, {"item": 0}, {"item": 0, "choice": "tie", "left": 6}, "left",
        {"item": 0, "choice": ["left"]}, {"item": 0, "choice": "tie", "right": 1.5},
    ],
)  # fmt: skip
def test_a_bad_rating_is_named(entry: Any, tmp_path: Path) -> None:
    sheet, path = sheet_of(), tmp_path / "r.json"
    good = {"item": 1, "choice": "tie"}
    content = {"comparison": sheet.id, "rater": "Ada", "ratings": [good, entry]}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"r\.json: entry 2 is no rating of an item"):
        read_ratings(path, sheet)
    path.write_text(json.dumps({**content, "comparison": "other"}))
    with pytest.raises(UserError, match="belong to another comparison"):
        read_ratings(path, sheet)


def test_command_from_models_to_tally(
    tiny_model_dir: Path, other_model_dirs: list[Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    prompts, page = tmp_path / "p.txt", tmp_path / "page.html"
    prompts.write_text("Hello\nWhy is that?\nTell me more\n")
    words = ["compare", str(tiny_model_dir), str(other_model_dirs[0]), "--prompts", str(prompts)]
    assert main([*words, "--output", str(page), "--max-new-tokens", "5", "--limit", "2"]) == 0
    assert "2 comparisons" in capsys.readouterr().out
    key = tmp_path / "page.key.json"
    sheet = Sheet.read_key(key)
    assert sheet.names == (str(tiny_model_dir), str(other_model_dirs[0]))
    entries = [(n, choice_for(item, "b")) for n, item in enumerate(sheet.items)]
    ratings = ratings_file(tmp_path / "r.json", sheet, "Ada", entries)
    out = tmp_path / "tally.json"
    words = ["compare", "--tally", str(ratings), "--key", str(key), "--json", str(out)]
    assert main(words) == 0
    assert json.loads(out.read_text())["win_rate"] == 1
    assert f"b = {other_model_dirs[0]}" in capsys.readouterr().out


def answers_file(path: Path, *answers: str) -> str:
    rows = [{"prompt": f"p{n}", "answer": text} for n, text in enumerate(answers)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return str(path)


def test_another_comparison_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        answers_file(tmp_path / f"{name}.jsonl", name, f"{name}\u2028{name}") for name in "ab"
    )
    page, key = tmp_path / "page.html", tmp_path / "page.key.json"
    assert main(["compare", first, second, "--output", str(page)]) == 0
    before = key.read_text(), page.read_text()
    assert "a\u2028a" in before[1]
    assert main(["compare", first, second, "--output", str(page)]) == 0
    for words in ([first, "./not-even-read.jsonl"], [first, second, "--seed", "1"]):
        assert main(["compare", *words, "--output", str(page)]) == 2
        assert f"key {key}: belongs to another comparison" in capsys.readouterr().err
        assert (key.read_text(), page.read_text()) == before


def test_answers_from_files(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "answer": "1"}, {"prompt": [{"role": "user", "content": "y"}],
            "answers": {"m": "2"}}, {"prompt": "z", "answer": "3"}]  # fmt: skip
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("\n".join(json.dumps(row) for row in rows))
    second.write_text(
        "\n".join(json.dumps({"prompt": r["prompt"], "answer": "0"}) for r in rows[:2])
    )
    page = tmp_path / "page.html"
    assert main(["compare", str(first), str(second), "--output", str(page)]) == 0
    sheet = Sheet.read_key(tmp_path / "page.key.json")
    assert {(item.prompt, item.a, item.b) for item in sheet.items} == {
        ("x", "1", "0"),
        ("y", "2", "0"),
    }
    for text in ("{", '{"prompt": "x"}', '{"prompt": "x", "answers": {"a": "1", "b": "2"}}',
                 '{"prompt": 3, "answer": "1"}', '{"prompt": "x", "answer": 1}'):  # fmt: skip
        first.write_text(text)
        with pytest.raises(UserError, match=r"a\.jsonl:1: is no row of answers"):
            read_answers(first)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["a"], "needs two models"),
        (["a", "b"], "prompts is missing"),
        (["a", "b", "--prompts", "./none"], "prompts ./none"),
        (["a", "b", "--prompts", "/dev/null"], "prompts /dev/null: holds no prompts"),
        (["a", "b", "--output", "./x", "--key", "./y/../x"], "output and key name the same file"),
        (["a", "b", "--key", "./no/key.json"], "key no/key.json: its folder does not exist"),
        (["a", "b", "--prompts", "p", "--limit", "0"], "--limit 0"),
        (["a", "b", "--prompts", "p", "--output", "./no/page.html"], "its folder does not exist"),
        (["--tally", "r.json", "--key", "./none.json"], "key none.json: cannot be read"),
        (["a", "--tally", "r.json"], "takes no models"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words]) == 2
    captured = capsys.readouterr()
    assert part in captured.err and captured.err.count("\n") == 1
