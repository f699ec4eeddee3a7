"""A conversation on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from orpo_dist.generation.speakers import Speaker
from orpo_dist.types import UserError

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
            for speaker, talk in zip(speakers, talks, strict=True):
                if len(speakers) > 1:
                    print(f"[{speaker.name}]")
                talk.append({"role": "user", "content": line})
                talk.append({"role": "assistant", "content": _reply(speaker, talk, options)})


def _begin(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _reply(speaker: Speaker, talk: list[dict[str, str]], options: dict[str, Any]) -> str:
    """Say the answer word by word, and return it."""
    from transformers import TextStreamer

    _fit(speaker, talk, options["max_new_tokens"])
    streamed = {}
    if options.get("num_beams", 1) == 1:  # beams are not known before they end
        streamed["streamer"] = TextStreamer(
            speaker.handle.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
    answer = speaker.answer(talk, **options, **streamed)
    if not streamed:
        print(answer)
    return answer


def _fit(speaker: Speaker, talk: list[dict[str, str]], room: int) -> None:
    """Drop the oldest turns until the conversation and its answer fit the context."""
    first = int(talk[0]["role"] == "system")
    while True:
        try:
            speaker.handle.check_length(len(speaker.handle.encoder.prompt_ids(talk)) + room)
            return
        except UserError:
            if len(talk) - first < 3:
                raise
            del talk[first : first + 2]
