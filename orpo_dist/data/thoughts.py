"""Thoughts: what stands between ``<think>`` and ``</think>``, in generation prompts and answers."""

from __future__ import annotations

import re

from orpo_dist.data.messages import REASONING, Message, reasoning_of

NAMES = "think|thinking|thought|reasoning"
# A generation prompt that opens a thought; and one that has closed it at once: do not think.
OPENED = re.compile(rf"[<\[]({NAMES})[>\]]\s*$", re.IGNORECASE)
CLOSED = re.compile(rf"[<\[]({NAMES})[>\]]\s*([<\[]/\1[>\]])\s*$", re.IGNORECASE)
# An answer that begins with a thought, with its opening tag or as it was generated, without.
BLOCK = re.compile(
    rf"\s*(?:[<\[](?:{NAMES})[>\]])?(.*?)([<\[]/(?:{NAMES})[>\]])\s*(.*)", re.IGNORECASE | re.DOTALL
)


def after_opened(opened: re.Match[str], message: Message, bare: str) -> tuple[str, bool]:
    """The answer after a prompt that opens a thought, and whether the thought had to be closed.

    bare: the answer as the template writes it, without its thought, or with an empty one.
    """
    opening = opened[0].strip()
    closing = f"{opening[0]}/{opening[1:]}"
    content = message["content"]
    if bare.startswith(opening):  # the template goes on as well, with other white space
        return bare.removeprefix(opening).lstrip("\n"), False
    if thought := reasoning_of(message):
        return f"{thought.strip()}\n{closing}\n\n{bare.lstrip()}", False
    if closing in content:  # with its opening tag, or as it was generated, without
        return content.lstrip().removeprefix(opening).lstrip("\n"), False
    return f"\n{closing}\n\n{bare.lstrip()}", True


def without_thought(prompt: str, content: str) -> tuple[str, bool]:
    """The content, without a thought of its own where the prompt has closed one, and whether so."""
    closed = CLOSED.search(prompt)
    if closed is None or closed[2] not in content:
        return content, False
    return content.rpartition(closed[2])[2].lstrip("\n"), True


def taken_apart(message: Message, text: str) -> Message | None:
    """The message with its thought beside its content, where the text has one too many; or None.

    Some templates read thoughts from their key alone, and write an empty one before the content.
    """
    found = BLOCK.match(message["content"])
    if found is None or text.count(found[2]) <= message["content"].count(found[2]):
        return None
    return {**message, **dict.fromkeys(REASONING, found[1].strip()), "content": found[3]}
