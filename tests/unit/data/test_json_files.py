"""JSON and JSON lines: rows, their line numbers, and what is broken."""

from __future__ import annotations

import pytest

from orpo_dist.data.json_files import Unreadable
from tests.unit.data.written import Write, numbers_of, refusal, rows_of


def test_row_numbers_are_line_numbers_also_after_blank_lines(write: Write) -> None:
    path = write("a.jsonl", '\n{"n": 1}\n\n   \n{"n": 2}\nbroken {\n{"n": 3}\n\n')
    assert numbers_of(path) == [2, 5, 6, 7]
    found = rows_of(path)
    assert isinstance(found[2], Unreadable)
    assert found[:2] + found[3:] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert numbers_of(write("lines.json", '{"n": 1}\n\n{"n": 2}\n')) == [1, 3]
    assert numbers_of(write("array.json", '[\n\n{"n": 1},\n{"n": 2}]')) == [1, 2]


@pytest.mark.parametrize("line", ["{", "nothing", '{"a": 1,}', "[" * 100_000, "9" * 5_000])
def test_a_broken_line_does_not_stop_the_others(line: str, write: Write) -> None:
    found = rows_of(write("a.jsonl", f'{line}\n{{"n": 1}}\n'))
    assert isinstance(found[0], Unreadable)
    assert found[1:] == [{"n": 1}]


def test_lines_that_are_json_but_no_objects_are_passed_on(write: Write) -> None:
    assert rows_of(write("a.jsonl", '3\n"text"\nnull\n[1]\n')) == [3, "text", None, [1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"n": 1},\n {"n": 2},\n {"n": }]', ":3: is not JSON"),
        ('[{"n": 1}', ":1: is not JSON"),
        ('{"n": 1}', ": holds one object; expected an array of rows"),
        ('{"a": {"n": 1}}', ": holds one object"),
        ('{"train": [{"n": 1}], "test": [{"n": 2}]}', ": holds one object"),
        ('{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}', ": holds one object"),
        ('{"chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}', ": holds one object"),
        ('{\n"n": 1}\n{"n": 2}\n{"n":', ":4: is not JSON"),
        ("3", ": holds one value; expected an array"),
        ('"text"', ": holds one value; expected an array"),
        ("null", ": holds one value; expected an array"),
        ("[" * 100_000, ": cannot be read as JSON"),
        (f"[{'9' * 5_000}]", ": cannot be read as JSON"),
        ("[]", ": holds no rows"),
        ("", ": is empty"),
    ],
)
def test_bad_json_files(content: str, message: str, write: Write) -> None:
    path = write("a.json", content)
    assert refusal(path).startswith(f"data file {path}{message}")


def test_rows_over_many_lines_have_the_line_they_begin_on(write: Write) -> None:
    text = '\r\n{\r\n"n": "a\u2028b"\r\n}\r\n\r\n{"n":\r\n2}{"n": 3}'
    assert numbers_of(write("a.jsonl", text)) == [2, 6, 7]
    assert numbers_of(write("b.jsonl", '{"n": 1} {"n": 2}\n{"n": 3}\n')) == [1, 1, 2]
    found = rows_of(write("c.jsonl", '{"n": 1} rest\n[{"n": 1}]\n{"n": 2} 3\n{"n": 3}\n'))
    assert [isinstance(row, Unreadable) for row in found] == [True, False, True, False]


def test_nan_is_a_number(write: Write) -> None:
    (row,) = rows_of(write("a.jsonl", '{"score": NaN, "best": Infinity}\n'))
    assert str(row["score"]) == "nan" and str(row["best"]) == "inf"
