"""Columns: found by their names, named by the user, or missing with a hint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.data.makers import AUTO, HH, SIDES, WHOLE, columns_of, reading, refusal, said


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
