"""One line out of what the libraries say."""

from __future__ import annotations

import pytest

from orpo_dist.base.reasons import KNOWN, reason_of


@pytest.mark.parametrize("words", KNOWN)
def test_known_words_have_their_reason(words: str) -> None:
    assert reason_of(ValueError(f"Oh no:\nit {words} somehow")) == KNOWN[words]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "ValueError"), ("  \n", "ValueError"), ("one\ntwo", "one"),
        ("A heading:\n  two \nthree", "A heading: two"), ("A heading:", "A heading:"),
    ],
)  # fmt: skip
def test_of_others_the_first_line(text: str, line: str) -> None:
    assert reason_of(ValueError(text)) == line
