"""Ranked and scored lists of answers: the best against each worse one."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.data.makers import AUTO, columns_of, reading, reason_of

NECTAR = {
    "prompt": "\n\nHuman: Why?\n\nAssistant: ",
    "answers": [
        {"answer": "second", "model": "m", "rank": 2.0},
        {"answer": "first", "model": "n", "rank": 1.0},
        {"answer": "third", "model": "o", "rank": 3.0},
    ],
    "turns": 1,
}
ULTRA = {
    "source": "evol",
    "instruction": "Why?",
    "models": ["m", "n"],
    "completions": [
        {"model": "m", "response": "bad", "overall_score": 4.0, "custom_system_prompt": "x"},
        {"model": "n", "response": "good", "overall_score": 8.5, "custom_system_prompt": "y"},
    ],
}
RATED = {"input": "Why?", "generations": ["low", "high", "none"], "ratings": [1, "9", None]}


@pytest.mark.parametrize(
    ("row", "pairs"),
    [
        (NECTAR, [("first", "second"), ("first", "third")]),
        ({**NECTAR, "answers": json.dumps(NECTAR["answers"])}, [("first", "second"),
                                                                ("first", "third")]),
        ({**NECTAR, "answers": str(NECTAR["answers"])}, [("first", "second"), ("first", "third")]),
        (ULTRA, [("good", "bad")]),
        (RATED, [("high", "low")]),
        ({"prompt": "Q", "responses": ["b", "a"], "ranks": [2, 1]}, [("a", "b")]),
        ({"question": "Q", "responses": "['b' 'a' 'c']", "scores": "[0.5 0.9 0.9]"}, [("a", "b")]),
        ({"prompt": "Q", "candidates": [{"text": "a", "score": 1},
                                        {"text": "b", "score": 2}]}, [("b", "a")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("asked", ["auto", "ranked"])
def test_ranked_lists_become_pairs(row: Any, pairs: list[Any], asked: str) -> None:
    found = reading(row, replace(AUTO, data_format=asked))
    records = list(found)
    got = [columns_of(record, found.columns) for record in records]
    assert [(one["chosen"], one["rejected"]) for one in got] == pairs
    prompt = row.get("prompt") or row.get("instruction") or row.get("input") or row.get("question")
    assert {one["prompt"] for one in got} == {prompt}
    assert {record.origin for record in records} == {"x.jsonl:1"}
    again = reading([record.raw for record in records])  # as --clean writes them
    assert again.form.ranking is None


@pytest.mark.parametrize(
    "answers",
    [
        [{"answer": "a", "rank": 1}],
        [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}],
        [{"answer": "a", "rank": 1}, {"answer": "b", "rank": None}],
        [{"answer": "a", "rank": 1}, {"answer": None, "rank": 2}],
        [],
        None,
        3,
    ],
)
def test_a_list_without_a_better_answer_has_a_reason(answers: Any) -> None:
    records = list(reading([NECTAR, {**NECTAR, "answers": answers}]))
    assert [reason_of(record) for record in records] == [None, None, "unranked"]


def test_what_became_of_ranked_lists_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tied = {**NECTAR, "answers": [*NECTAR["answers"], {"answer": "also", "rank": 1}]}
    found = reading([NECTAR, tied, {**NECTAR, "answers": []}])
    assert caplog.messages == [
        "x.jsonl: read as ranked answers (prompt → prompt, the best by answers' rank against each "
        "worse one)"
    ]
    assert len(list(found)) == 5
    found.conclude()
    assert caplog.messages[1:] == [
        "x.jsonl: 3 ranked lists became 4 pairs; 1 answers as good as the best were left out"
    ]
