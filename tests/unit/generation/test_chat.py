"""Chat: what it remembers, forgets and cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orpo_dist.generation.chat import chat
from orpo_dist.generation.speakers import speakers


def test_chat_remembers_forgets_and_ends(
    adapter_dirs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    both = speakers(str(adapter_dirs[0]), "base")
    asked: list[list[dict[str, str]]] = []
    tuned = both[1].handle
    generate = tuned.generate

    def spy(prompt: Any, **options: Any) -> Any:
        asked.append([dict(message) for message in prompt])
        return generate(prompt, **options)

    tuned.generate = spy  # type: ignore[method-assign]
    lines = iter(["Hello", "", "/what", "And you?", "/new", "Hello"])

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    chat(both, {"max_new_tokens": 4}, "Be brief.", read)
    assert [len(talk) for talk in asked] == [2, 2, 4, 4, 2, 2]
    assert asked[2][0] == {"role": "system", "content": "Be brief."}
    assert asked[2][2]["role"] == "assistant"
    assert asked[2][2] != asked[3][2]  # each remembers its own answer
    said = capsys.readouterr().out
    assert said.count("[base]") == 3
    assert asked[2][2]["content"] in said


def test_a_long_conversation_loses_its_oldest_turns(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (speaker,) = speakers(str(tiny_model_dir))
    lines = iter(["word " * 100] * 5 + ["/quit"])
    asked: list[int] = []
    generate = speaker.handle.generate

    def spy(prompt: Any, **options: Any) -> Any:
        asked.append(len(prompt))
        return generate(prompt, **options)

    speaker.handle.generate = spy  # type: ignore[method-assign]
    chat([speaker], {"max_new_tokens": 4}, None, lambda _: next(lines))
    assert asked[0] == 1 and asked[-1] < 9 and asked[-1] % 2 == 1
    asked.clear()
    lines = iter(["Hello", "word " * 1000, "And you?", "/quit"])
    chat([speaker], {"max_new_tokens": 4}, None, lambda _: next(lines))
    assert asked == [1, 3]  # the line in between is forgotten, what stood before it is not
    assert "over the model's context" in capsys.readouterr().err
