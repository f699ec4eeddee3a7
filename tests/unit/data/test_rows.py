"""One raw row becomes one example, or is refused for a reason that people can read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_dist.data.messages import ROLES
from orpo_dist.data.reasons import REASONS, Unusable
from orpo_dist.data.rows import Columns, Example, parse_row

COLUMNS = Columns()
IMPLICIT = Columns(implicit_prompt=True)


def row(prompt: Any = "Q", chosen: Any = "good", rejected: Any = "bad") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def talk(*contents: str) -> list[dict[str, Any]]:
    return [said("assistant" if i % 2 else "user", text) for i, text in enumerate(contents)]


def reason_of(value: Any, columns: Columns = COLUMNS) -> str:
    with pytest.raises(Unusable) as caught:
        parse_row(value, columns)
    assert caught.value.reason == str(caught.value)
    assert caught.value.reason in REASONS
    return caught.value.reason


def test_strings_are_kept_as_they_are() -> None:
    found = parse_row(row(" Q \n", " good\n", "bad "), COLUMNS)
    assert found == Example(" Q \n", " good\n", "bad ", "")


def test_columns_have_other_names() -> None:
    columns = Columns("question", "yes", "no", "topic")
    raw = {"question": "Q", "yes": "a", "no": "b", "topic": "math", "prompt": "other", "extra": 1}
    assert parse_row(raw, columns) == Example("Q", "a", "b", "math")


@pytest.mark.parametrize(
    ("value", "category"),
    [("math", "math"), (3, "3"), (0, "0"), (True, ""), (None, ""), (["a"], ""), ("\ud83d", "")],
)
def test_category(value: Any, category: str) -> None:
    assert parse_row({**row(), "category": value}, COLUMNS).category == category


def test_a_blank_before_an_answer_is_dropped_after_marked_turns_only() -> None:
    marked = "\n\nHuman: Q\n\nAssistant:"
    assert parse_row(row(marked, " good", " bad"), COLUMNS) == Example(talk("Q"), "good", "bad")
    assert parse_row(row(talk("Q"), " good", "bad"), COLUMNS) == Example(talk("Q"), " good", "bad")


def test_messages_with_the_prompt_inside() -> None:
    prompt = [said("system", "S"), *talk("Q1", "A1", "Q2")]
    found = parse_row(
        {"chosen": [*prompt, said("assistant", "good")], "rejected": [*prompt, said("bot", "bad")]},
        COLUMNS,
    )
    assert found == Example(prompt, "good", "bad")


def test_from_and_value_are_role_and_content() -> None:
    sides = [[{"from": "human", "value": "Q"}, {"from": "gpt", "value": v}] for v in ("a", "b")]
    found = parse_row({"chosen": sides[0], "rejected": sides[1]}, COLUMNS)
    assert found == Example([said("user", "Q")], "a", "b")


@pytest.mark.parametrize("role", [*ROLES, *map(str.upper, ROLES)])
def test_roles_are_normalised(role: str) -> None:
    found = parse_row(row([said(role, "Q")]), COLUMNS)
    assert found.prompt == [said(ROLES[role.lower()], "Q")]
    assert found.prompt[0]["role"] in {"system", "developer", "user", "assistant", "tool"}


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    sides = [said("assistant", parts)], [said("assistant", "b")]
    found = parse_row(row([said("user", parts)], *sides), COLUMNS)
    assert found == Example([said("user", "one two")], "one two", "b")


def test_prompt_column_with_answers_as_messages() -> None:
    good, bad = [said("assistant", "good")], [said("assistant", "bad")]
    assert parse_row(row("Q", good, bad), COLUMNS) == Example("Q", "good", "bad")
    assert parse_row(row(talk("Q"), good, bad), COLUMNS) == Example(talk("Q"), "good", "bad")
    assert parse_row(row(talk("Q"), "good", "bad"), COLUMNS) == Example(talk("Q"), "good", "bad")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Q", talk("Q")),
        (" Q\n", talk("Q")),
        (talk("Q"), talk("Q")),
        ([said("system", "S"), *talk("Q")], [said("system", "S"), *talk("Q")]),
        ([said("system", "S")], [said("system", "S"), *talk("Q")]),
        (talk("Q0", "A0"), talk("Q0", "A0", "Q")),
    ],
)
def test_prompt_column_and_prompt_in_the_sides(prompt: Any, expected: list[Any]) -> None:
    found = parse_row(row(prompt, talk("Q", "good"), talk("Q", "bad")), COLUMNS)
    assert found == Example(expected, "good", "bad")


def test_string_prompt_may_be_any_question_of_the_conversation() -> None:
    sides = talk("Q1", "A1", "Q2", "good"), talk("Q1", "A1", "Q2", "bad")
    for prompt in ("Q1", "Q2"):
        assert parse_row(row(prompt, *sides), COLUMNS).prompt == talk("Q1", "A1", "Q2")
    assert reason_of(row("A1", *sides)) == "mismatched_prompts"


def test_hh_transcripts_hold_their_prompt() -> None:
    shared = "\n\nHuman: Hi\nthere\n\nAssistant: Hello.\n\nHuman: How?\n\nAssistant:"
    raw = {"chosen": f"{shared} So.\n\nAnd so.", "rejected": f"{shared} No.\n\n"}
    expected = Example(talk("Hi\nthere", "Hello.", "How?"), "So.\n\nAnd so.", "No.")
    assert parse_row(raw, COLUMNS) == expected
    assert parse_row({key: text.lstrip() for key, text in raw.items()}, COLUMNS) == expected
    assert parse_row({**raw, "prompt": None}, COLUMNS) == expected


def test_transcripts_of_different_questions() -> None:
    sides = [f"\n\nHuman: {q}\n\nAssistant: {a}" for q, a in (("Q1", "a"), ("Q2", "b"))]
    assert reason_of({"chosen": sides[0], "rejected": sides[1]}) == "mismatched_prompts"
    unanswered = "\n\nHuman: Q\n\nAssistant: A\n\nHuman: Thanks"
    assert reason_of({"chosen": unanswered, "rejected": unanswered}) == "mismatched_prompts"


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Tell me: yes sir", "Tell me: yesterday", ("Tell me: ", "yes sir", "yesterday")),
        ("Q?\ngood one", "Q?\ngone", ("Q?\n", "good one", "gone")),
    ],
)
def test_common_beginning_ends_between_words(
    chosen: str, rejected: str, expected: tuple[str, str, str]
) -> None:
    raw = {"chosen": chosen, "rejected": rejected}
    assert reason_of(raw) == "no_prompt"
    found = parse_row(raw, IMPLICIT)
    assert (found.prompt, found.chosen, found.rejected) == expected


REFUSED = [
    ("not_an_object", None),
    ("not_an_object", [1, 2]),
    ("not_an_object", "text"),
    ("missing_column", {"prompt": "Q", "chosen": "a"}),
    ("missing_column", {"prompt": "Q", "rejected": "a"}),
    ("wrong_type", row(chosen=3)),
    ("wrong_type", row(prompt=3)),
    ("wrong_type", row(rejected={"role": "assistant", "content": "a"})),
    ("not_text", {**row(), "images": ["cat.png"]}),
    ("not_text", {**row(), "audio": {"path": "a.wav"}}),
    ("wrong_type", row(chosen=["a"])),
    ("wrong_type", row(chosen=[said("assistant", None)])),
    ("wrong_type", row(chosen=[{"content": "a"}])),
    ("wrong_type", row(chosen=[{"role": 1, "content": "a"}])),
    ("not_text", row(chosen=[said("assistant", [{"type": "image", "url": "u"}])])),
    ("wrong_type", row(chosen=[said("assistant", ["a"])])),
    ("wrong_type", row(chosen=[said("assistant", "a")])),
    ("broken_text", row(prompt="half \ud83d")),
    ("broken_text", row(rejected=[said("assistant", "\udc00")])),
    ("unknown_role", row(chosen=[said("narrator", "a")])),
    ("empty_prompt", row(prompt="")),
    ("empty_prompt", row(prompt=" \n")),
    ("empty_prompt", row(prompt=[])),
    ("empty_prompt", row(prompt=[said("user", " ")])),
    ("empty_prompt", {"chosen": talk("", "a"), "rejected": talk("", "b")}),
    ("empty_chosen", row(chosen="")),
    ("empty_chosen", row(chosen=None)),
    ("empty_chosen", row(chosen=" \t")),
    ("empty_chosen", row(chosen=[])),
    ("empty_chosen", {"chosen": talk("Q", " "), "rejected": talk("Q", "b")}),
    ("empty_rejected", row(rejected="")),
    ("empty_rejected", row(rejected=None)),
    ("empty_rejected", row(rejected=[])),
    ("empty_rejected", {"chosen": talk("Q", "a"), "rejected": talk("Q", "")}),
    ("identical_answers", row(chosen="same", rejected="same")),
    ("identical_answers", row(chosen="same", rejected=" same\n")),
    ("identical_answers", {"chosen": talk("Q", "a"), "rejected": talk("Q", "a")}),
    ("mismatched_prompts", {"chosen": talk("Q1", "a"), "rejected": talk("Q2", "b")}),
    ("mismatched_prompts", {"chosen": talk("Q", "a"), "rejected": talk("Q", "a", "Q", "b")}),
    ("mismatched_prompts", {"chosen": talk("Q"), "rejected": talk("Q")}),
    ("mismatched_prompts", row("other", talk("Q", "a"), talk("Q", "b"))),
    ("no_prompt", {"chosen": "this", "rejected": "that"}),
    ("no_prompt", {"prompt": None, "chosen": " yes", "rejected": " no"}),
    ("no_prompt", {"chosen": talk("Q", "a")[1:], "rejected": talk("Q", "b")[1:]}),
]


@pytest.mark.parametrize(("reason", "value"), REFUSED)
def test_refused_rows(reason: str, value: Any) -> None:
    assert reason_of(value) == reason


def test_an_implicit_prompt_has_to_be_shared() -> None:
    for reason, *sides in (
        ("no_shared_prompt", "this", "that"),
        ("no_shared_prompt", " yes", " no"),
        ("empty_chosen", "the same ", "the same words"),
    ):
        assert reason_of({"chosen": sides[0], "rejected": sides[1]}, IMPLICIT) == reason


def test_every_reason_of_this_stage_is_tested() -> None:
    later_stages = {"not_json", "template_refused", "over_length", "end_inside"}
    later_stages |= {"foreign_marks", "special_inside", "same_when_rendered"}  # test_forms.py
    later_stages |= {"no_shared_prompt"}  # above
    later_stages |= {"no_difficulty"}  # test_curriculum.py
    later_stages |= {"serialised", "unranked", "no_prompt"}  # the tests of schemas
    assert {reason for reason, _ in REFUSED} | later_stages == set(REASONS)


def test_an_unknown_reason_is_a_mistake_in_the_code() -> None:
    with pytest.raises(AssertionError):
        Unusable("bad_mood")


LETTERS = st.text(st.sampled_from("ab \n\ud83dé"), max_size=8)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | LETTERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3),
    max_leaves=8,
)
ROLE_NAMES = st.sampled_from(["user", "assistant", "system", "human", "GPT", "narrator"])
PARTS = st.lists(st.fixed_dictionaries({"text": LETTERS | ANYTHING}), max_size=2)
MESSAGE = st.fixed_dictionaries({"role": ROLE_NAMES, "content": LETTERS | PARTS}) | (
    st.fixed_dictionaries({"from": ROLE_NAMES | ANYTHING, "value": LETTERS | ANYTHING})
)
TRANSCRIPT = st.lists(st.sampled_from(["Human", "Assistant"]), max_size=4).map(
    lambda speakers: "".join(f"\n\n{speaker}: {i}" for i, speaker in enumerate(speakers))
)
CELL = LETTERS | TRANSCRIPT | st.lists(MESSAGE, max_size=3) | ANYTHING
CONTEXT = st.lists(MESSAGE, max_size=2)


@given(
    ANYTHING
    | st.fixed_dictionaries(
        {"chosen": CELL, "rejected": CELL}, optional={"prompt": CELL, "category": ANYTHING}
    )
    | st.tuples(CONTEXT, st.lists(MESSAGE, max_size=2), CELL).map(
        lambda parts: {
            "prompt": parts[2],
            "chosen": [*parts[0], *parts[1]],
            "rejected": [*parts[0], said("assistant", "b")],
        }
    )
)
@settings(max_examples=400, deadline=None)
def test_any_row_is_an_example_or_unusable(value: Any) -> None:
    try:
        found = parse_row(value, COLUMNS)
    except Unusable as unusable:
        assert unusable.reason in REASONS
        return
    assert found.chosen.strip() and found.rejected.strip()
    assert found.chosen.strip() != found.rejected.strip()
    found.chosen.encode(), found.rejected.encode(), found.category.encode()
    if isinstance(found.prompt, str):
        assert found.prompt.strip()
    else:
        assert any(message["content"].strip() for message in found.prompt)
        assert all(set(message) == {"role", "content"} for message in found.prompt)
