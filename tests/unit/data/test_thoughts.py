"""Thoughts after prompts that open one, that close one, and in answers of their own."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_dist.data.thoughts import CLOSED, OPENED, after_opened, taken_apart, without_thought


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize("tag", ["<think>", "<thinking>", "<THOUGHT>", "[reasoning]"])
def test_a_prompt_opens_or_closes_a_thought(tag: str) -> None:
    closing = f"{tag[0]}/{tag[1:]}"
    assert OPENED.search(f"Q\n{tag}\n") and not CLOSED.search(f"Q\n{tag}\n")
    closed = CLOSED.search(f"Q\n{tag}\n\n{closing}\n\n")
    assert closed is not None and closed[2] == closing
    assert not OPENED.search(f"{tag} more")  # not at its end
    assert not CLOSED.search(f"Q {tag} hm {closing}\n")  # something was thought


@pytest.mark.parametrize(
    ("message", "bare", "expected", "had_to_close"),
    [
        (said("A"), "A", "\n</think>\n\nA", True),
        (said("A"), "\n\nA", "\n</think>\n\nA", True),
        (said("A", reasoning_content=" hm "), "A", "hm\n</think>\n\nA", False),
        (said("<think>\nhm</think>A"), "x", "hm</think>A", False),
        (said("hm</think>A"), "x", "hm</think>A", False),
        (said("A"), "<think>\n\n</think>\n\nA", "</think>\n\nA", False),
    ],
)  # fmt: skip
def test_an_answer_goes_on_with_the_thought_that_its_prompt_opens(
    message: dict[str, Any], bare: str, expected: str, had_to_close: bool
) -> None:
    opened = OPENED.search("Q <think>\n")
    assert opened is not None
    assert after_opened(opened, message, bare) == (expected, had_to_close)


@pytest.mark.parametrize(
    ("prompt", "content", "expected", "left_out"),
    [
        ("<think>\n\n</think>\n", "<think>hm</think>\n\nA", "A", True),
        ("<think>\n\n</think>\n", "one</think>two</think>A", "A", True),
        ("<think>\n\n</think>\n", "A", "A", False),
        ("<think>\n\n</think>\n", "hm</thinking>A", "hm</thinking>A", False),
        ("<think>\n", "<think>hm</think>A", "<think>hm</think>A", False),
        ("Q", "hm</think>A", "hm</think>A", False),
    ],
)  # fmt: skip
def test_a_closed_thought_is_not_opened_again(
    prompt: str, content: str, expected: str, left_out: bool
) -> None:
    assert without_thought(prompt, content) == (expected, left_out)


def test_a_thought_in_the_content_is_taken_out_where_the_text_has_one_more() -> None:
    message = said("<think> hm\nhm </think>\n\nA", name="x")
    apart = taken_apart(message, "<think>\n\n</think><think> hm\nhm </think>\n\nA")
    assert apart is not None
    assert (apart["content"], apart["name"]) == ("A", "x")
    assert {apart[n] for n in ("reasoning_content", "reasoning", "thinking")} == {"hm\nhm"}
    assert taken_apart(message, "<think> hm\nhm </think>\n\nA") is None
    assert taken_apart(said("A"), "<think></think>A") is None
