"""Preference data of many makers: recognised, forced, or refused with what to set."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_dist.base.types import UserError
from orpo_dist.data.reading import Reading, Record
from orpo_dist.data.rows import Columns, Unusable
from orpo_dist.data.sources import Source

AUTO = Columns()
SIDES = {"chosen": "Yes, it is.", "rejected": "Yes, no."}


def reason_of(record: Any) -> str | None:
    return record.refusal.reason if record.refusal else None


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def talk(answer: str) -> list[dict[str, Any]]:
    return [said("user", "Why?"), said("assistant", answer)]


WHOLE = {"chosen": talk("Because."), "rejected": talk("No.")}
HH = {side: f"\n\nHuman: Why?\n\nAssistant: {side}" for side in ("chosen", "rejected")}
SHARE = {
    "conversations": [{"from": "human", "value": "Why?"}],
    "chosen": {"from": "gpt", "value": "a"},
    "rejected": {"from": "gpt", "value": "b"},
}
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

# name of data_format -> a row of that form, and the columns that parse_row gets from it
FORMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("pairs", {"prompt": "Q", **SIDES}, {"prompt": "Q", **SIDES}),
    ("orca", {"system": "S", "question": "Q", **SIDES}, {"prompt": "Q", "system": "S", **SIDES}),
    ("orca", {"system": "S", "input": "Q", **SIDES}, {"prompt": "Q", "system": "S", **SIDES}),
    ("alpaca", {"instruction": "I", **SIDES}, {"prompt": "I", **SIDES}),
    ("alpaca", {"instruction": "I", "input": "", **SIDES}, {"prompt": "I", **SIDES}),
    ("alpaca", {"instruction": "I", "input": None, **SIDES}, {"prompt": "I", **SIDES}),
    ("alpaca", {"instruction": "I", "input": "X", **SIDES}, {"prompt": "I\nX", **SIDES}),
    (
        "alpaca",
        {"instruction": "I", "input": "X", "system": "S", "history": [["a", "b"]], **SIDES},
        {
            "prompt": [said("user", "a"), said("assistant", "b"), said("user", "I\nX")],
            "system": "S",
        },
    ),
    (
        "alpaca",
        {"instruction": "I", "input": "X", "output": ["good", "bad"]},
        {"prompt": "I\nX", "chosen": "good", "rejected": "bad"},
    ),
    (
        "alpaca",
        {"instruction": "I", "input": "X", "output": "['good', 'bad']"},
        {"prompt": "I\nX", "chosen": "good", "rejected": "bad"},
    ),
    (
        "alpaca",
        {"instruction": "I", "input": "X", "output": "good", **SIDES},
        {"prompt": "I\nX", **SIDES},
    ),
    ("sharegpt", SHARE, {"prompt": SHARE["conversations"], "chosen": SHARE["chosen"]}),
    (
        "sharegpt",
        {**SHARE, "system": "S", "tools": '[{"name": "t"}]'},
        {"prompt": SHARE["conversations"], "system": "S", "tools": [{"name": "t"}]},
    ),
    (
        "sharegpt",
        {"messages": [said("user", "Why?")], "chosen": said("assistant", "a"), "rejected": "b"},
        {"prompt": [said("user", "Why?")], "chosen": said("assistant", "a")},
    ),
    (
        "ultrafeedback",
        {"prompt": "Why?", "messages": talk("a"), "score_chosen": 8, "score_rejected": 2, **WHOLE},
        {"prompt": "Why?", **WHOLE},
    ),
    (
        "argilla",
        {"instruction": "I", "chosen_response": "a", "rejected_response": "b", "source": "x"},
        {"prompt": "I", "chosen": "a", "rejected": "b"},
    ),
    (
        "argilla",
        {"system": "S", "prompt": "P", "chosen_response": "a", "rejected_response": "b"},
        {"prompt": "P", "chosen": "a", "rejected": "b", "system": "S"},
    ),
    ("argilla", {"chosen_rating": 5, "rejected_rating": 4, **WHOLE}, WHOLE),
    ("hh", HH, HH),
    ("hh", WHOLE, WHOLE),
    ("hh", {k: json.dumps(v) for k, v in WHOLE.items()}, {}),
]


def reading(row: Any, columns: Columns = AUTO, count: int = 1, **options: Any) -> Reading:
    rows = row if isinstance(row, list) else [row] * count
    return Reading(Source("x", [(f"x.jsonl:{n}", r) for n, r in enumerate(rows, 1)], []), columns,
                   **options)  # fmt: skip


def columns_of(record: Record, columns: Columns) -> dict[str, Any]:
    """What parse_row takes from a record, under the usual names."""
    names = ("prompt", "chosen", "rejected", "system", "tools")
    return {name: record.row.get(getattr(columns, name)) for name in names}


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


def refusal(row: Any, columns: Columns = AUTO, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        reading(row, columns, count=3, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("others", "hint"),
    [
        ({"question": "Q"}, "there is a column 'question': set --prompt-text-column question"),
        ({"query": "Q", "id": "7", "source": "web"}, "there is a column 'query': set"),
        ({"note": "n", "input": "Q"}, "there are columns 'input', 'note': set "
                                      "--prompt-text-column input"),
        ({"problem": "P", "question": "Q"}, "there are columns 'question', 'problem': set "
                                            "--prompt-text-column question"),
        ({"Prompt": "Q"}, "there is a column 'Prompt': set --prompt-text-column Prompt"),
        ({"prompt ": "Q"}, "there is a column 'prompt ': set --prompt-text-column 'prompt '"),
        ({"user_prompt": "Q"}, "there is a column 'user_prompt': set --prompt-text-column"),
        ({"messages": [said("user", "Q")], "chosen": [said("assistant", "a")],
          "rejected": [said("assistant", "b")]}, "set --prompt-text-column messages"),
        ({"words": "Q"}, "there is a column 'words': set --prompt-text-column words (or "
                         "--implicit-prompt"),
        ({"system": "S", "question": "Q"}, "there is a column 'question': set"),
        ({"system": "S"}, "there is a column 'system': set --prompt-text-column system"),
        ({"prompt": None, "question": "Q"}, "column 'prompt' is empty; there is a column"),
    ],
)  # fmt: skip
def test_no_prompt_is_made_up_beside_other_texts(others: dict[str, Any], hint: str) -> None:
    columns = replace(AUTO, data_format="pairs")
    found = refusal({**SIDES, **others}, columns)
    assert found.startswith("x.jsonl: ") and hint in found
    if "prompt" not in others:
        assert "has no column 'prompt'" in found
    allowed = replace(columns, implicit_prompt=True)
    assert len(list(reading({**SIDES, **others}, allowed))) == 1


@pytest.mark.parametrize(
    "row",
    [
        SIDES,  # nothing else there: parse_row has a reason for each row
        {**SIDES, "id": "x", "source": "y", "category": "z", "score": 3, "chosen_model": "m"},
        {**WHOLE, "question": "Why?"},
        {**HH, "question": "Why?"},
        {**WHOLE, "prompt": ""},
        {**WHOLE, "prompt": []},
        {**WHOLE, "prompt": None, "question": "Why?"},
        {"chosen": "<|im_start|>user\nWhy?<|im_end|>", "rejected": "<|im_start|>user", "text": "x"},
        {"chosen": "[INST] Why? [/INST] a", "rejected": "[INST] Why? [/INST] b", "text": "x"},
    ],
)
def test_rows_that_hold_their_prompt_are_let_through(row: dict[str, Any]) -> None:
    assert len(list(reading(row, count=3))) == 3


def test_a_prompt_missing_in_some_rows_only_is_a_matter_of_those_rows() -> None:
    row = {"prompt": "Q", "question": "Q", **SIDES}
    assert len(list(reading([row, {**row, "prompt": None}, {**SIDES, "question": "Q"}]))) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "preferred": "a", "worse": "b"},
         "has no column 'chosen'; its columns are prompt, preferred, worse (set --text-column "
         "preferred)"),
        ({"prompt": "Q", "response_j": "a", "response_k": "b"}, "(set --text-column response_j)"),
        ({"prompt": "Q", "chosen": "a", "response_k": "b"},
         "(set --rejected-text-column response_k)"),
        ({"prompt": "Q", "chosen ": "a", "rejected": "b"},
         "its columns are prompt, 'chosen ', rejected (set --text-column 'chosen ')"),
        ({"prompt": "Q", "completion": "a", "label": True}, "has no column 'chosen'"),
    ],
)  # fmt: skip
def test_missing_answers_have_lookalikes(row: dict[str, Any], message: str) -> None:
    assert message in refusal(row)


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ({"data_format": "orca"}, {"question": "Q", **SIDES},
         "data_format orca needs system, question (or input), chosen and rejected; the columns are "
         "question, chosen, rejected"),
        ({"data_format": "alpaca"}, {"prompt": "Q", **SIDES}, "needs instruction, and chosen"),
        ({"data_format": "sharegpt"}, {"prompt": "Q", **SIDES}, "needs conversations"),
        ({"data_format": "sharegpt"}, {"messages": "text", **SIDES}, "needs conversations"),
        ({"data_format": "ultrafeedback"}, {"prompt": "Q", **SIDES}, "score_chosen"),
        ({"data_format": "argilla"}, {"prompt": "Q", **SIDES}, "chosen_response"),
        ({"data_format": "hh"}, {"prompt": "Q", **SIDES}, "needs whole transcripts"),
        ({"data_format": "ranked"}, {"prompt": "Q", **SIDES}, "needs a prompt"),
        ({"data_format": "ranked"}, {"prompt": "Q", "answers": ["a", "b"]}, "needs a prompt"),
        ({"data_format": "alpaca", "prompt": "ask"}, {"ask": "Q", "instruction": "I", **SIDES},
         "reads instruction → prompt, so prompt_text_column ask has no place"),
        ({"data_format": "argilla", "chosen": "good"},
         {"prompt": "Q", "good": "x", "chosen_response": "a", "rejected_response": "b"},
         "text_column good has no place"),
        ({"prompt": "ask"}, {"question": "Q", "system": "S", **SIDES},
         "has no column 'ask'; its columns are question, system, chosen, rejected (set "
         "--prompt-text-column"),
        ({"system": "sys"}, {"prompt": "Q", "system": "S", **SIDES},
         "has no column 'sys'; its columns are prompt, system, chosen, rejected (set "
         "--system-column system)"),
        ({"tools": "calls"}, {"prompt": "Q", "tools": [], **SIDES}, "(set --tools-column tools)"),
    ],
)  # fmt: skip
def test_a_wrong_form_or_column_is_refused(columns: Any, row: Any, message: str) -> None:
    found = refusal(row, replace(AUTO, **columns))
    assert found.startswith("x.jsonl: ") and message in found


def test_columns_named_by_the_user_win() -> None:
    row = {"system": "S", "question": "Q", "instruction": "I", "persona": "P", **SIDES}
    found = reading(row, replace(AUTO, prompt="question"))
    (record,) = found
    got = columns_of(record, replace(found.columns, system="none"))
    assert (got["prompt"], found.columns.system) == ("Q", None)
    assert found.conclude() == [
        (True, "x.jsonl: column 'system' (1 of 1 rows) is not used; set --system-column system")
    ]
    found = reading(row, replace(AUTO, system="persona"))
    assert found.columns.system == "persona"
    found = reading({"persona": "P", "question": "Q", **SIDES}, replace(AUTO, system="persona"))
    assert (found.columns.prompt, found.columns.system) == ("question", "persona")
    orca = {"system": "S", "ask": "Q", **SIDES}
    found = reading(orca, replace(AUTO, data_format="orca", prompt="ask"))
    assert (found.columns.prompt, found.columns.system) == ("ask", "system")
    named = {"instruction": "I", "input": "X", "good": "a", "bad": "b"}
    found = reading(named, replace(AUTO, chosen="good", rejected="bad"))
    assert [record.row["prompt"] for record in found] == ["I\nX"]


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
