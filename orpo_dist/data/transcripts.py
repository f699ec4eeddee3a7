"""Whole conversations in one text: role marks of data sets, and marks of chat templates."""

from __future__ import annotations

import re

from orpo_dist.data.messages import ROLES, Message

# How role marks are written: Anthropic's HH, "User: …", Guanaco, Vicuna. A text keeps to one way.
DIALECTS = tuple(
    map(
        re.compile,
        (
            r"(?:^|\n\n)(Human|Assistant): ?",
            r"(?:^|\n+)(System|User|Assistant): ?",
            r"(?:^|\n|(?<=\s))### (System|Human|User|Assistant): ?",
            r"(?:^|\s+)(SYSTEM|USER|ASSISTANT): ?",
        ),
    )
)

# How rendered text of well-known chat templates begins, after any BOS.
RENDERED = re.compile(
    r"\s*(?:(?:<s>|<bos>|<BOS_TOKEN>|\[gMASK\]|<sop>|(?:<[|｜][\w▁]+[|｜]>))\s*)*"
    r"(?:<[|｜][\w▁]+[|｜]?>|<(?:start|end)_of_turn>|<extra_id_\d+>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]|<<SYS>>)"
)

# The instruction form of Alpaca, which models without a chat template are tuned on.
INSTRUCTION = re.compile(r"^\s*Below is an instruction|### Instruction:[\s\S]*### Response:")


def turns(text: str) -> list[Message]:
    """Messages of a text that begins with a role mark, or nothing."""
    for dialect in DIALECTS:
        before, *pieces = dialect.split(text)
        if pieces and not before.strip():
            strip = str.strip if dialect is not DIALECTS[0] else _without_lines
            return [
                {"role": ROLES[mark.lower()], "content": strip(content)}
                for mark, content in zip(pieces[::2], pieces[1::2], strict=True)
            ]
    return []


def _without_lines(text: str) -> str:
    return text.rstrip("\n")


def prompt_turns(text: str) -> list[Message]:
    """Messages of a prompt that ends with the mark of the assistant, or nothing."""
    found = turns(text)
    if len(found) > 1 and found[-1] == {"role": "assistant", "content": ""}:
        return found[:-1]
    return []


def whole_turns(text: str) -> list[Message]:
    """Messages of a whole conversation that ends with an answer, or nothing."""
    found = turns(text)
    return found if len(found) > 1 and found[-1]["role"] == "assistant" else []


def is_rendered(text: str) -> bool:
    """Whether a text begins as some chat template would begin it."""
    return RENDERED.match(text) is not None


def is_transcript(value: str) -> bool:
    """Whether a text begins with a mark of roles or of a template, so that it holds its prompt."""
    return bool(turns(value)) or is_rendered(value)
