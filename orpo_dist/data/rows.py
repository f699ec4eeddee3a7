"""One raw row -> one ``Example``, or the reason why it cannot be used.

Understands plain strings, message lists (``role``/``content`` or ``from``/``value``), and whole
transcripts without a prompt column, where the prompt is what both sides share.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]

# Every reason a row can be left out for, in words for the data report.
REASONS = {
    "not_json": "the line is not JSON",
    "not_an_object": "the row is not an object with columns",
    "missing_column": "the row lacks the column of an answer",
    "wrong_type": "a text or message list was expected",
    "serialised": "the text is a serialised message list that cannot be read",
    "broken_text": "a text holds half a character (a lone surrogate)",
    "unknown_role": "a message has a role other than system, user, assistant, tool",
    "empty_prompt": "the prompt is empty",
    "empty_chosen": "the chosen answer is empty",
    "empty_rejected": "the rejected answer is empty",
    "end_inside": "an answer holds the end-of-text token in its middle",
    "identical_answers": "chosen and rejected are the same",
    "mismatched_prompts": "chosen and rejected answer different prompts",
    "no_prompt": "no prompt column, and the answers are no transcripts: name it "
    "(prompt_text_column) or set implicit_prompt",
    "no_shared_prompt": "no prompt column, and the two sides share no beginning",
    "template_refused": "the chat template does not accept these messages",
    "unranked": "no answer of the list is ranked above another",
    "no_difficulty": "the difficulty column holds no number",
    "over_length": "no room for prompt and answer within the length limits",
}

# What is worth knowing about rows that are used, in words for the data report.
NOTES: dict[str, str] = {
    "lower_score": "the chosen answer has the lower score",
}

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "tool": "tool",
}  # fmt: skip

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


class Unusable(Exception):
    """A row that has to be left out; ``reason`` is a key of ``REASONS``."""

    def __init__(self, reason: str):
        assert reason in REASONS, reason
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    category: str = "category"
    difficulty: str | None = None  # None: rows need none
    system: str | None = None
    tools: str | None = "tools"
    data_format: str = "auto"
    implicit_prompt: bool = False


@dataclass(frozen=True)
class Example:
    """A readable preference: the prompt as text or messages, and the text of the two answers."""

    prompt: str | list[Message]
    chosen: str
    rejected: str
    category: str = ""
    difficulty: float = 0.0


def parse_row(row: Any, columns: Columns) -> Example:
    """Read one row; raises ``Unusable`` with the reason when it cannot become a pair."""
    if not isinstance(row, dict):
        raise Unusable("not_an_object")
    if columns.chosen not in row or columns.rejected not in row:
        raise Unusable("missing_column")
    chosen = _side(row[columns.chosen], "empty_chosen")
    rejected = _side(row[columns.rejected], "empty_rejected")
    prompt = row.get(columns.prompt)
    if prompt is not None:
        prompt = _side(prompt, "empty_prompt")
    if isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        chosen, rejected, prompt = _split_transcripts(chosen, rejected)
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _split_conversations(prompt, chosen, rejected)
    if isinstance(prompt, list) and not any(message["content"].strip() for message in prompt):
        raise Unusable("empty_prompt")
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise Unusable("wrong_type")
    if not chosen.strip():
        raise Unusable("empty_chosen")
    if not rejected.strip():
        raise Unusable("empty_rejected")
    if chosen.strip() == rejected.strip():
        raise Unusable("identical_answers")
    assert prompt
    difficulty = _number(row.get(columns.difficulty)) if columns.difficulty else 0.0
    return Example(prompt, chosen, rejected, _category(row.get(columns.category)), difficulty)


def _number(value: Any) -> float:
    """A difficulty: a number, or a text that is one (CSV knows no others)."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable("no_difficulty")
    return number


def parse_prompt(value: Any) -> str | list[Message]:
    """A prompt that stands alone, as text or messages; raises ``Unusable``."""
    return _side(value, "empty_prompt")


def _category(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and _is_whole(value) else ""


def _is_whole(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON escapes may leave half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _side(value: Any, empty_reason: str) -> str | list[Message]:
    """A column's value as text or as normalised messages."""
    if value is None:
        raise Unusable(empty_reason)
    if isinstance(value, str):
        if not value.strip():
            raise Unusable(empty_reason)
        if not _is_whole(value):
            raise Unusable("broken_text")
        return value
    if not isinstance(value, list):
        raise Unusable("wrong_type")
    if not value:
        raise Unusable(empty_reason)
    return [_message(item) for item in value]


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise Unusable("wrong_type")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if isinstance(content, list):  # the parts form: [{"type": "text", "text": ...}]
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise Unusable("wrong_type")
    if role.lower() not in ROLES:
        raise Unusable("unknown_role")
    if not _is_whole(content):
        raise Unusable("broken_text")
    return {"role": ROLES[role.lower()], "content": content}


def _split_conversations(
    prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[str | list[Message], str, str]:
    """Both sides end in their answer; whatever stands before it belongs to the prompt."""
    context, other = chosen[:-1], rejected[:-1]
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise Unusable("mismatched_prompts")
    if context != other:
        raise Unusable("mismatched_prompts")
    answers = chosen[-1]["content"], rejected[-1]["content"]
    if not context:
        if prompt is None:
            raise Unusable("no_shared_prompt")
        return prompt, *answers
    if isinstance(prompt, str):
        asked = [m["content"].strip() for m in context if m["role"] == "user"]
        if prompt.strip() not in asked:
            raise Unusable("mismatched_prompts")
    elif prompt is not None and prompt[-len(context) :] == context:
        return prompt, *answers  # e.g. the system message stands in the prompt column only
    elif prompt is not None and context[: len(prompt)] != prompt:
        return prompt + context, *answers  # the sides go on where the prompt ends
    return context, *answers


def _split_transcripts(chosen: str, rejected: str) -> tuple[Any, Any, Any]:
    """``(chosen, rejected, prompt)`` of two whole transcripts, whose prompt is implicit."""
    turns = _turns(chosen), _turns(rejected)
    if turns[0] and turns[1]:
        return turns[0], turns[1], None
    differ = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    shared = chosen[: next(differ, min(len(chosen), len(rejected)))]
    shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]  # end between words
    if not shared.strip():
        raise Unusable("no_shared_prompt")
    return chosen[len(shared) :], rejected[len(shared) :], shared


def _turns(text: str) -> list[Message]:
    """Messages of a ``Human: … Assistant: …`` transcript (Anthropic HH form), or nothing."""
    pieces = TURN.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        return []
    return [
        {"role": ROLES[speaker.lower()], "content": content.rstrip("\n")}
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
