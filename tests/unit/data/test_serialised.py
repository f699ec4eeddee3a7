"""Message lists written as text are read in every dialect, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_dist.data.reasons import Unusable
from orpo_dist.data.serialised import listed, unserialised

TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "it's\n\"so\" } {'role': 'x', \\d [1, 2]… ü\u2028👩‍👧"},
    {"content": "array(['a' 'b'])", "role": "assistant", "tool_calls": None, "done": True},
]
ARRAY = np.array(TALK, dtype=object)

DIALECTS = {
    "json": json.dumps(TALK),
    "json, not ascii, indented": json.dumps(TALK, indent=2, ensure_ascii=False),
    "json with raw newlines": json.dumps(TALK).replace("it's\\n", "it's\n"),
    "json in json": json.dumps(json.dumps(TALK)),
    "json three times": json.dumps(json.dumps(json.dumps(TALK))),
    "repr of json": repr(json.dumps(TALK)),
    "python": str(TALK),
    "python with blanks around": f" \n{TALK} \n",
    "numpy str": str(ARRAY),
    "numpy repr": repr(ARRAY),
    "single quotes and null": str(TALK).replace("None", "null").replace("True", "true"),
    "single quotes and nan": str(TALK).replace("None", "nan"),
    "tuple": str(tuple(TALK)),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_list_is_read(dialect: str) -> None:
    assert unserialised(DIALECTS[dialect]) == TALK


@pytest.mark.parametrize("write", [json.dumps, str, lambda value: json.dumps(json.dumps(value))])
def test_one_message_is_read(write: Any) -> None:
    for message in (*TALK, {"from": "human", "value": "Hi"}, {"role": "tool", "content": None}):
        assert unserialised(write(message)) == message


def test_a_cell_that_pandas_wrote(tmp_path: Any) -> None:
    pd.DataFrame({"list": [TALK], "array": [ARRAY]}).to_csv(tmp_path / "file.csv")
    row = pd.read_csv(tmp_path / "file.csv").iloc[0]
    assert unserialised(row["list"]) == unserialised(row["array"]) == TALK


def test_arrays_inside_of_messages() -> None:
    parts = np.array([{"type": "text", "text": "a"}], dtype=object)
    message = {"role": "user", "content": parts, "weight": np.float64(0.5), "at": -1}
    expected = [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "weight": 0.5, "at": -1}
    ]
    assert unserialised(str([message])) == expected
    assert unserialised(str(np.array([message], dtype=object))) == expected


def test_a_list_of_texts_that_are_messages() -> None:
    assert unserialised([json.dumps(message) for message in TALK]) == TALK
    assert unserialised(["a", "b"]) == ["a", "b"]


BROKEN = [
    str(np.array([TALK[0]] * 1001, dtype=object)),  # numpy shortens with ...
    DIALECTS["json"][:60],
    DIALECTS["json"][:-1],
    DIALECTS["python"][:60],
    DIALECTS["json in json"][:60],
    str(TALK)[:47] + "...",
    "[{'content': 'Wh...",
    '[{"role": "user", "content": "an "unescaped" quote"}]',
    '[{"role": "user", "content": "a"} {"role": ]',
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_cannot_be_read_has_a_reason(text: str) -> None:
    with pytest.raises(Unusable, match="serialised"):
        unserialised(text)


ANSWERS = [
    "",
    "text",
    "[",
    "{}",
    "[]",
    "[1, 2]",
    '"quoted"',
    "[citation needed]",
    '{"role": "admin"}',
    '{"role": "admin", "content": "rules all"}',
    '{"name": "x", "role": "user"}',
    '[{"name": "x"}]',
    '{"name": "cut off", "age": 3',
    '{"content": "cut off',
    '{"from": "human"}',
    '{"from": "gpt", "to": "you"}',
    '[{"role": "user", "content": prompt}]',
    '[{"role": "user", "content": f"{a}"}]',
    '[{"role": "user", "content": ask()}]',
    "[{'role': 'user', 'content': 'a' + b}]",
    "[{**message, 'role': 'user'}]",
    "{'role': 'user', **message}",
    '[{"role": "user", "content": "a"}] is how it\'s done',
    '[{"role": "user", "content": "a"}]\n\nThat\'s the list.',
    '[{"role": "user", "content": "a"}, "b"]',
    'Send [{"role": "user", "content": "a"}]',
    '```json\n[{"role": "user", "content": "a"}]\n```',
    '"[{\\"role\\": \\"user\\"}]" is a text',
    '{"type": "object", "properties": {"role": {"type": "string"}}}',
]


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_that_are_json_or_code_stay(text: str) -> None:
    assert unserialised(text) is text


@pytest.mark.parametrize("value", [None, 3, 2.5, True, [], {}, TALK, TALK[0], [1, "a"]])
def test_other_values_stay(value: Any) -> None:
    assert unserialised(value) is value


@pytest.mark.parametrize("begin", ["", '"', "[", '"[', "array(", "{", '[{"content', "\\"])
@pytest.mark.timeout(5)
def test_long_blanks_and_brackets_take_no_time(begin: str) -> None:
    for filling in (" ", "\n", '"', "\\", "[", "{"):
        text = begin + filling * 50_000
        assert unserialised(text) is text


TEXT = st.text(max_size=30) | st.text(st.sampled_from("[]{}()'\"\\\n,:ab "), max_size=30)


@given(st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT}), min_size=1))
@settings(max_examples=150, deadline=None)
def test_any_text_survives(talk: list[dict[str, str]]) -> None:
    array = np.empty(len(talk), dtype=object)
    array[:] = talk
    with np.printoptions(threshold=10**6):
        written = str(array), repr(array)
    for text in (json.dumps(talk), json.dumps(talk, ensure_ascii=False), str(talk), *written):
        assert unserialised(text) == talk


@given(TEXT | TEXT.map('[{"role": "user", "content": '.__add__))
@settings(max_examples=300, deadline=None)
def test_any_text_is_kept_or_refused(text: str) -> None:
    try:
        assert unserialised(text) is text or isinstance(unserialised(text), list | dict)
    except Unusable as unusable:
        assert unusable.reason == "serialised"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a", "b c"]', ["a", "b c"]),
        ("['a', 'b c']", ["a", "b c"]),
        ("['a' 'b c']", ["a", "b c"]),
        ("[0.5 1.5]", [0.5, 1.5]),
        ("array([3, 4])", [3, 4]),
        ('{"a": [1]}', {"a": [1]}),
        ("text", "text"),
        (None, None),
        ([1], [1]),
    ],
)
def test_lists_of_any_kind(text: Any, expected: Any) -> None:
    assert listed(text) == expected


def test_a_broken_list_is_refused() -> None:
    with pytest.raises(Unusable, match="serialised"):
        listed('["a", "b')
