"""Reading a data set: what is said of it once, and rows of any content."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_dist.base.types import UserError
from orpo_dist.data.rows import Unusable
from tests.unit.data.makers import AUTO, FORMS, HH, SHARE, SIDES, reading, refusal


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (FORMS[1][1], "read as Orca DPO pairs (system + question → prompt)"),
        (FORMS[6][1], "read as Alpaca pairs (instruction + input → prompt)"),
        (FORMS[12][1], "read as ShareGPT pairs (system + conversations → prompt)"),
        (HH, "read as whole transcripts (what both sides share → prompt)"),
        ({"prompt": "Q", **SIDES}, None),
    ],
)
def test_the_form_is_said_in_one_line(
    row: Any, line: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = reading(row, count=3)
    assert caplog.messages == ([f"x.jsonl: {line}"] if line else [])
    list(found)
    assert found.conclude() == ([(False, f"x.jsonl: {line}")] if line else [])
    caplog.clear()
    reading(row, quiet=True).conclude()
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("system", "S", "set --system-column system"),
        ("system_prompt", "S", "set --system-column system_prompt"),
        ("input", "X", "put it into the prompt if the answers need it"),
        ("context", "X", "put it into the prompt if the answers need it"),
        ("document", "X", "put it into the prompt if the answers need it"),
        ("functions", "[]x", "set --tools-column functions"),
    ],
)
def test_context_that_is_not_used_is_named_once(
    name: str, value: Any, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"prompt": "Q", **SIDES}
    found = reading([{**row, name: value}, {**row, name: None}, row, {**row, name: value}])
    list(found)
    found.conclude()
    line = f"x.jsonl: column '{name}' (2 of 4 rows) is not used; {advice}"
    assert caplog.messages == [line]
    assert caplog.records[0].levelno == logging.WARNING


def test_an_instruction_named_by_the_user_leaves_its_input_out_aloud() -> None:
    row = {"instruction": "I", "input": "X", **SIDES}
    found = reading(row, replace(AUTO, prompt="instruction"))
    list(found)
    ((loud, sentence),) = found.conclude()
    assert loud and sentence == (
        "x.jsonl: column 'input' (1 of 1 rows) is not used; --data-format alpaca joins it to the "
        "instruction"
    )
    both = reading(row, replace(AUTO, prompt="instruction", data_format="alpaca"))
    assert [record.row["prompt"] for record in both] == ["I\nX"]


def test_columns_that_are_used_or_empty_are_not_named() -> None:
    row = {"prompt": "Q", "system": "S", "tools": [{"name": "t"}], "context": "", **SIDES}
    found = reading(row, replace(AUTO, system="system"))
    list(found)
    assert found.conclude() == []


def test_rows_of_every_type_pass() -> None:
    records = list(reading([3, None, ["a"], {"prompt": "Q", **SIDES}]))
    assert [record.row for record in records[:3]] == [3, None, ["a"]]
    assert list(reading([3, "x"])) and list(reading([])) == []


def test_prompts_alone() -> None:
    for row, prompt in (
        ({"prompt": "Q"}, "Q"),
        ({"system": "S", "question": "Q"}, "Q"),
        ({"instruction": "I", "input": "X"}, "I\nX"),
        ({"conversations": SHARE["conversations"]}, SHARE["conversations"]),
    ):
        found = reading(row, sides=False)
        assert [record.row[found.columns.prompt] for record in found] == [prompt]
    assert "--prompt-text-column question" in refusal({"question": "Q"}, sides=False)


NAMES = st.sampled_from(
    ["prompt", "chosen", "rejected", "system", "question", "instruction", "input", "history",
     "output", "conversations", "messages", "answers", "ratings", "generations", "tools",
     "score_chosen", "score_rejected", "chosen_response", "rejected_response", "context"]
)  # fmt: skip
CELLS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4)
    | st.sampled_from(["[]", "[1", "{}", "['a' 'b']", '{"role": "user", "content": "x"}']),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "answer", "rank"]), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


@given(
    st.lists(st.dictionaries(NAMES, CELLS, max_size=8) | CELLS, max_size=4),
    st.sampled_from(["auto", "pairs", "orca", "alpaca", "sharegpt", "argilla", "hh", "ranked"]),
)
@settings(max_examples=400, deadline=None)
def test_any_rows_are_read_or_refused(rows: list[Any], name: str) -> None:
    try:
        found = reading(rows, replace(AUTO, data_format=name))
    except UserError as refused:
        assert "\n" not in str(refused)
        return
    for record in found:
        with contextlib.suppress(Unusable):  # which knows its reasons
            record.example(found.columns)
    found.conclude()
