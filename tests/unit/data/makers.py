"""Rows as their makers write them, and how they are read here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.data.reading import Reading, Record
from orpo_dist.data.rows import Columns
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


def refusal(row: Any, columns: Columns = AUTO, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        reading(row, columns, count=3, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
