"""Prompts: from flags, files and every known form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import UserError
from orpo_dist.cli import main
from orpo_dist.generation.prompts import prompt_lines, read_prompts
from tests.conftest import DEMO


def test_prompts_from_every_place(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("one\n\n  two \none\n", encoding="utf-8")
    assert read_prompts(["zero"], str(text)) == ["zero", "one", "  two "]
    messages = [{"from": "human", "value": "Hi"}]
    rows = write_rows([
        {"prompt": "plain", "chosen": "a", "rejected": "b"},
        {"prompt": messages},
        {side: f"\n\nHuman: Why?\n\nAssistant: {side}" for side in ("chosen", "rejected")},
        {"prompt": "plain"},
    ])  # fmt: skip
    hi = {"role": "user", "content": "Hi"}
    assert read_prompts([], str(rows)) == ["plain", [hi], [{"role": "user", "content": "Why?"}]]
    assert read_prompts(["x"], None, system="Be brief.") == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    ]
    text.write_bytes("a\u2028b\u0085c\r\nd".encode())
    assert read_prompts([], str(text)) == ["a\u2028b\u0085c", "d"]
    assert prompt_lines([hi]) == "Hi"
    assert prompt_lines([hi, {"role": "assistant", "content": "Yo"}]) == "user: Hi\nassistant: Yo"


def test_prompts_of_known_forms(write_rows: Callable[..., Path]) -> None:
    sides = {"chosen": "a", "rejected": "b"}
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    answers = [{"answer": text, "rank": n} for n, text in enumerate("abc")]
    for row, prompt in (
        ({"system": "S", "question": "Q", **sides}, asked),
        ({"system": "S", "question": "Q"}, asked),
        ({"instruction": "I", "input": "X", **sides}, "I\nX"),
        ({"instruction": "I", "input": "X", "output": "a"}, "I\nX"),
        ({"prompt": "Q", "answers": answers}, "Q"),
        ({"prompt": "Q", "chosen": "same", "rejected": "same"}, "Q"),
    ):
        assert read_prompts([], str(write_rows([row, row]))) == [prompt]
    with pytest.raises(UserError, match=r"there is a column 'question': set --prompt-text-column"):
        read_prompts([], str(write_rows([{"question": "Q"}])))


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"question": "x"}, "pairs.jsonl:2: has no column 'prompt'"),
        ({"prompt": " "}, "pairs.jsonl:2: the prompt is empty"),
        ({"prompt": 3}, "pairs.jsonl:2: a text or message list was expected"),
    ],
)
def test_a_bad_row_is_named(row: Any, part: str, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="prompts-file") as mistake:
        read_prompts([], str(write_rows([{"prompt": "good"}, row])))
    assert part in str(mistake.value)


def test_a_file_without_prompts_and_a_mistyped_column_are_named(
    tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(UserError, match=r"^prompts-file .*empty\.txt: holds no prompts$"):
        read_prompts(["one"], str(empty))
    row = {"prompt": "x", "chosen": "It is so.", "rejected": "It is not."}
    with pytest.raises(UserError, match=r"pairs\.jsonl: has no column 'promt'"):
        read_prompts([], str(write_rows([row])), column="promt")


def test_prompts_of_the_demo_data(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ["generate", str(tiny_model_dir), "--prompts-file", str(DEMO / "eval.jsonl")]
    assert main([*words, "--max-new-tokens", "2", "--json", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 64
