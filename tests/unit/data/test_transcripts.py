"""Conversations in one text: each dialect by itself, and what only looks like one."""

from __future__ import annotations

import pytest

from orpo_dist.data.transcripts import (
    is_rendered,
    is_transcript,
    prompt_turns,
    turns,
    whole_turns,
)

ASKED, TOLD = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
DIALECTS = {
    "hh": "\n\nHuman: Why?\n\nAssistant: So.",
    "plain": "User: Why?\nAssistant: So.",
    "guanaco": "### Human: Why?### Assistant: So.",
    "guanaco in lines": "### Human: Why?\n### Assistant: So.\n",
    "vicuna": "USER: Why? ASSISTANT: So.",
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects(name: str) -> None:
    text = DIALECTS[name].replace("?###", "?\n###")
    assert turns(text) == whole_turns(text) == [ASKED, TOLD]
    assert is_transcript(text) and prompt_turns(text) == []
    asked = text.partition("So.")[0].rstrip(" ")
    assert prompt_turns(asked) == [ASKED]
    assert turns("Well, " + text) == []  # it does not begin with a mark


def test_an_answer_in_hh_keeps_its_blanks_but_not_its_line_breaks() -> None:
    assert turns("\n\nHuman: Why? \n\nAssistant:  So.\n")[0]["content"] == "Why? "
    assert turns("\n\nHuman: Why?\n\nAssistant:  So.\n")[1]["content"] == " So."
    assert turns("User: Why? \nAssistant:  So.\n")[1]["content"] == "So."


def test_a_question_alone_is_no_conversation() -> None:
    assert turns("Human: Why?") == [ASKED]
    assert whole_turns("Human: Why?") == whole_turns("Assistant: So.") == []
    assert prompt_turns("Assistant:") == []


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("<|im_start|>user\nWhy?", True), ("<s>[INST] Why? [/INST]", True),
        ("<bos><start_of_turn>user", True), ("[gMASK]<sop><|user|>", True),
        ("<｜begin▁of▁sentence｜><｜User｜>Why?", True), ("<<SYS>>", True),
        ("<s>Why?", False), ("Why? <|im_start|>", False), ("<div>", False), ("", False),
    ],
)  # fmt: skip
def test_rendered_text(text: str, rendered: bool) -> None:
    assert is_rendered(text) == is_transcript(text) == rendered
