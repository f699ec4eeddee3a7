"""A conversation on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TextStreamer

from orpo_dist.base.types import UserError
from orpo_dist.generation.speakers import Speaker

HELP = "/new: forget what was said; /quit or Ctrl-D: leave"


def chat(
    speakers: Sequence[Speaker],
    options: dict[str, Any],
    system: str | None = None,
    read: Callable[[str], str] = input,
) -> None:
    """Answer line by line until the lines end. Every speaker remembers its own answers.

    options: for ``generate`` of transformers. A conversation that outgrows the model's context
    loses its oldest turns.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (lets people edit what they type)
    print(HELP, file=sys.stderr)
    talks: list[list[dict[str, str]]] = [_begin(system) for _ in speakers]
    while True:
        try:
            line = read("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            talks = [_begin(system) for _ in speakers]
        elif line.startswith("/"):
            print(HELP, file=sys.stderr)
        elif line:
            for number, speaker in enumerate(speakers):
                if len(speakers) > 1:
                    print(f"[{speaker.name}]")
                try:
                    talks[number] = _turn(speaker, talks[number], line, options)
                except UserError as error:  # of this line alone: the talk goes on without it
                    print(f"error: {error}", file=sys.stderr)


def _begin(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _turn(
    speaker: Speaker, talk: list[dict[str, str]], line: str, options: dict[str, Any]
) -> list[dict[str, str]]:
    """Say the answer to a line word by word; returns the talk with both."""
    options = {"num_beams": 1, **options}
    talk = _fit(speaker, [*talk, {"role": "user", "content": line}], options["max_new_tokens"])
    if options["num_beams"] > 1:  # beams are not known before they end
        answer = speaker.answer(talk, **options)
        print(answer)
    else:
        streamer = TextStreamer(
            speaker.handle.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        answer = speaker.answer(talk, **options, streamer=streamer)
    return [*talk, {"role": "assistant", "content": answer}]


def _fit(speaker: Speaker, talk: list[dict[str, str]], room: int) -> list[dict[str, str]]:
    """The talk without its oldest turns, as far as it and its answer outgrow the context."""
    first = int(talk[0]["role"] == "system")
    while True:
        tokens = len(speaker.handle.prompt_ids(talk))
        try:
            speaker.handle.check_length(tokens + room)
            return talk
        except UserError:
            if len(talk) - first < 3:
                raise
            talk = talk[:first] + talk[first + 2 :]
