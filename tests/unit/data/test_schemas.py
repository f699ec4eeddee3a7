"""Preference data of many makers: recognised, forced, or refused with what to set."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.data.makers import (
    AUTO,
    FORMS,
    SHARE,
    SIDES,
    columns_of,
    reading,
    reason_of,
    said,
    talk,
)


@pytest.mark.parametrize("asked", ["auto", "by name"])
@pytest.mark.parametrize(("name", "row", "expected"), FORMS)
def test_forms(name: str, row: dict[str, Any], expected: dict[str, Any], asked: str) -> None:
    columns = replace(AUTO, data_format=name if asked == "by name" else "auto")
    found = reading(row, columns)
    (record,) = found
    assert record.refusal is None and record.raw == row
    got = columns_of(record, found.columns)
    assert {key: got[key] for key in expected} == expected
    assert got["system"] == row.get("system")


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([TOOL], [TOOL]),
        (json.dumps([TOOL]), [TOOL]),
        (str([TOOL]), [TOOL]),
        ([json.dumps(TOOL)], [TOOL]),
        (TOOL, [TOOL]),
        (json.dumps(TOOL), [TOOL]),
        ("", None),
        ("[]", None),
        ([], None),
        ("null", None),
        (None, None),
        ("hammer", "wrong_type"),
        ([3], "wrong_type"),
        (3, "wrong_type"),
        ('[{"type": ', "serialised"),
    ],
)
def test_tools_are_a_list_or_a_reason(value: Any, expected: Any) -> None:
    (record,) = reading({"prompt": "Q", "tools": value, **SIDES})
    if isinstance(expected, str):
        assert reason_of(record) == expected
    else:
        assert record.refusal is None and record.row["tools"] == expected


@pytest.mark.parametrize(
    ("scores", "lower"),
    [
        ({"score_chosen": 3.0, "score_rejected": 8.0}, True),
        ({"score_chosen": 8.0, "score_rejected": 3.0}, False),
        ({"score_chosen": 3.0, "score_rejected": 3.0}, False),
        ({"chosen_score": "3", "rejected_score": "8"}, True),
        ({"chosen_rating": 3, "rejected_rating": 4}, True),
        ({"chosen-rating": 3, "rejected-rating": 4}, True),
        ({"chosen_avg_rating": 3, "rejected_avg_rating": 4}, True),
        ({"reward_chosen": -3, "reward_rejected": -1}, True),
        ({"score_chosen": None, "score_rejected": 8.0}, False),
        ({"chosen_rank": 1, "rejected_rank": 2}, False),
        ({"chosen_length": 1, "rejected_length": 2}, False),
    ],
)
def test_a_lower_score_is_noted(scores: dict[str, Any], lower: bool) -> None:
    (record,) = reading({"prompt": "Q", **SIDES, **scores})
    assert record.notes == (("lower_score",) if lower else ())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"history": "[['a', 'b']]"},
         [said("user", "a"), said("assistant", "b"), said("user", "I")]),
        ({"history": [said("user", "a")]}, [said("user", "a"), said("user", "I")]),
        ({"history": ""}, "I"),
        ({"history": []}, "I"),
        ({"instruction": "", "input": "X"}, "X"),
        ({"instruction": talk("a")[:1]}, talk("a")[:1]),
        ({"instruction": None}, ""),
        ({"history": "[['a', "}, "serialised"),
        ({"history": "none"}, "wrong_type"),
        ({"history": [["a"]]}, "wrong_type"),
        ({"input": ["X"]}, "wrong_type"),
        ({"input": np.array(["X"])}, "wrong_type"),
        ({"instruction": talk("a")[:1], "input": "X"}, "wrong_type"),
    ],
)  # fmt: skip
def test_alpaca_rows(change: dict[str, Any], expected: Any) -> None:
    row = {"instruction": "I", **SIDES}
    record = list(reading([row, {**row, **change}]))[1]
    assert (reason_of(record) or record.row["prompt"]) == expected


def test_conversations_that_hold_the_answer_are_no_prompt() -> None:
    row = {**SHARE, "conversations": [*SHARE["conversations"], {"from": "gpt", "value": "a"}]}
    assert reading(row).form.title == "pairs"  # whose rows have no prompt
    assert len(list(reading(row, replace(AUTO, data_format="sharegpt")))) == 1
