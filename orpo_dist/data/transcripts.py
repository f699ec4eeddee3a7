"""Whole conversations in one text: role marks of data sets, and marks of chat templates."""

from __future__ import annotations

import re
from typing import Any

from orpo_dist.data.messages import ROLES, Message

# "\n\nHuman: …\n\nAssistant: …" (Anthropic HH) and "### Human: … ### Assistant: …" (Guanaco).
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?|(?:^|\n|(?<= ))### (Human|Assistant): ?")

# How rendered text of well-known chat templates begins, after any BOS.
RENDERED = re.compile(
    r"\s*(?:(?:<s>|<bos>|\[gMASK\]|<sop>|(?:<[|｜][\w▁]+[|｜]>))\s*)*"
    r"(?:<[|｜][\w▁]+[|｜]?>|<(?:start|end)_of_turn>|<extra_id_\d+>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]|<<SYS>>)"
)

# The instruction form of Alpaca, which models without a chat template are tuned on.
INSTRUCTION = re.compile(r"^\s*Below is an instruction|### Instruction:[\s\S]*### Response:")


def turns(text: str) -> list[Message]:
    """Messages of a text that begins with a role mark, or nothing."""
    pieces = TURN.split(text)
    if len(pieces) < 4 or pieces[0].strip():
        return []
    return [
        {"role": ROLES[hh.lower()], "content": content.rstrip("\n")}
        if hh
        else {"role": ROLES[guanaco.lower()], "content": content.strip()}
        for hh, guanaco, content in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True)
    ]


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


def is_transcript(value: Any) -> bool:
    """Whether an answer holds its own prompt: a list of several messages, or marked text."""
    if isinstance(value, str):
        return bool(turns(value)) or is_rendered(value)
    return isinstance(value, list) and len(value) > 1
