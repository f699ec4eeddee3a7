"""One raw row -> one ``Example``, or the reason why it cannot be used.

Understands plain strings, message lists (``role``/``content`` or ``from``/``value``), and whole
conversations without a prompt column, where the prompt is what both sides share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from orpo_dist.data.messages import (
    PLAIN,
    Message,
    is_whole,
    message_of,
    same_message,
    without_nulls,
    words,
)
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.serialised import unserialised
from orpo_dist.data.transcripts import is_rendered, prompt_turns, turns, whole_turns

# Columns of what a language model does not read; a row with a value there is left out.
MEDIA = ("images", "image", "videos", "video", "audios", "audio")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, and how to read them."""

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
    """A readable preference: the prompt as text or messages, and the two answers.

    An answer is its text, or a message where it holds more than text (a thought, tool calls). An
    empty prompt: both answers are rendered conversations, which a tokenizer's template can split.
    tools: what the template describes to the model, a list of objects.
    """

    prompt: str | list[Message]
    chosen: str | Message
    rejected: str | Message
    category: str = ""
    difficulty: float = 0.0
    tools: list[Any] | None = None


def parse_row(row: Any, columns: Columns) -> Example:
    """Read one row; raises ``Unusable`` with the reason when it cannot become a pair."""
    if not isinstance(row, dict):
        raise Unusable("not_an_object")
    if columns.chosen not in row or columns.rejected not in row:
        raise Unusable("missing_column")
    for name in MEDIA:
        if row.get(name) not in (None, "", [], {}) and name not in vars(columns).values():
            raise Unusable("not_text", f"column {name}")
    chosen = _side(row[columns.chosen], "empty_chosen")
    rejected = _side(row[columns.rejected], "empty_rejected")
    prompt, chosen, rejected = _split(_prompt_of(row, columns), chosen, rejected, columns)
    if isinstance(prompt, list) and not any(words(message).strip() for message in prompt):
        raise Unusable("empty_prompt")
    for answer, reason in ((chosen, "empty_chosen"), (rejected, "empty_rejected")):
        if not words(answer).strip():
            raise Unusable(reason)
    if _bare(chosen) == _bare(rejected):
        raise Unusable("identical_answers")
    if columns.system:
        prompt = _with_system(prompt, row.get(columns.system))
    difficulty = _number(row.get(columns.difficulty)) if columns.difficulty else 0.0
    category = _category(row.get(columns.category))
    tools = without_nulls(row.get(columns.tools)) if columns.tools else None
    return Example(prompt, chosen, rejected, category, difficulty, tools or None)


def parse_prompt(value: Any) -> str | list[Message]:
    """A prompt that stands alone, as text or messages; raises ``Unusable``."""
    prompt = _side(value, "empty_prompt")
    return prompt_turns(prompt) or prompt if isinstance(prompt, str) else prompt


def _prompt_of(row: dict[Any, Any], columns: Columns) -> Any:
    """The prompt column as text or messages; empty or None where the row has nothing there."""
    value = row.get(columns.prompt)
    if value is None or (isinstance(value, str | list) and not value):
        return value
    if isinstance(value, str) and not value.strip():
        return ""
    return _side(value, "empty_prompt")


def _side(value: Any, empty_reason: str) -> str | list[Message]:
    """A column's value as text or as messages."""
    value = unserialised(value)
    if value is None:
        raise Unusable(empty_reason)
    if isinstance(value, str):
        if not value.strip():
            raise Unusable(empty_reason)
        if not is_whole(value):
            raise Unusable("broken_text")
        return value
    if isinstance(value, dict):  # one message that nobody put into a list
        value = [value]
    if not isinstance(value, list):
        raise Unusable("wrong_type")
    if not value:
        raise Unusable(empty_reason)
    return [message_of(item) for item in value]


def _split(prompt: Any, chosen: Any, rejected: Any, columns: Columns) -> tuple[Any, Any, Any]:
    """``(prompt, chosen, rejected)`` with everything the answers share in the prompt."""
    marked = prompt_turns(prompt) if isinstance(prompt, str) else []
    prompt = marked or prompt
    if isinstance(chosen, str) and isinstance(rejected, str):
        read = whole_turns if prompt else turns
        talks = read(chosen), read(rejected)
        if all(talks):
            chosen, rejected = talks
        elif prompt:
            return _after_marks(prompt, bool(marked), chosen, rejected)
        elif is_rendered(chosen) and is_rendered(rejected):
            return "", chosen, rejected
        elif columns.implicit_prompt and prompt is None:
            return _shared_beginning(chosen, rejected)
        else:
            raise Unusable("no_prompt" if prompt is None else "empty_prompt")
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise Unusable("wrong_type")
    return _split_conversations(prompt, chosen, rejected)


def _after_marks(prompt: Any, marked: bool, *answers: str) -> tuple[Any, ...]:
    """``(prompt, *answers)``; after marked turns without the mark, or the blank, between them."""
    said = [turns(answer) for answer in answers]
    if all(len(turn) == 1 and turn[0]["role"] == "assistant" for turn in said):
        if isinstance(prompt, str):
            prompt = turns(prompt) or prompt
        if not isinstance(prompt, str):
            return prompt, *(turn[0]["content"] for turn in said)
    return prompt, *(answer.removeprefix(" ") if marked else answer for answer in answers)


def _split_conversations(
    prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[Any, Any, Any]:
    """Both sides end in their answer; whatever stands before it belongs to the prompt."""
    context, other = chosen[:-1], rejected[:-1]
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise Unusable("mismatched_prompts", "a side does not end with the assistant")
    if not _same(context, other):
        raise Unusable("mismatched_prompts")
    answers = _answer(chosen[-1]), _answer(rejected[-1])
    if not context:
        if not prompt:
            raise Unusable("no_prompt" if prompt is None else "empty_prompt")
        return prompt, *answers
    if not prompt:
        return context, *answers
    if isinstance(prompt, str):
        if not _asked(prompt, context):
            raise Unusable("mismatched_prompts", "the prompt column holds another question")
        return context, *answers
    return _joined(prompt, context), *answers


def _asked(prompt: str, context: list[Message]) -> bool:
    """Whether a prompt as text is a question of the conversation, or all that was said in it."""
    said = ["".join(message["content"].split()) for message in context]
    asked = [text for text, m in zip(said, context, strict=True) if m["role"] == "user"]
    return "".join(prompt.split()) in (*asked, "".join(said))


def _joined(prompt: list[Message], context: list[Message]) -> list[Message]:
    """One conversation of a prompt column and of what both sides begin with."""
    if any(_same(context[i : i + len(prompt)], prompt) for i in range(len(context))):
        return context
    if _same(prompt[-len(context) :], context):
        return prompt  # e.g. the system message stands in the prompt column only
    if (prompt[-1]["role"], context[0]["role"]) in (("system", "user"), ("assistant", "user")):
        return prompt + context  # the sides go on where the prompt ends
    raise Unusable("mismatched_prompts", "the prompt column holds another question")


def _same(one: list[Message], other: list[Message]) -> bool:
    return len(one) == len(other) and all(map(same_message, one, other))


def _answer(message: Message) -> str | Message:
    return message if set(message) - PLAIN else str(message["content"])


def _bare(answer: str | Message) -> Any:
    """What makes an answer differ from another: not the white space around it."""
    if isinstance(answer, str):
        return answer.strip()
    return {**answer, "content": answer["content"].strip()}


def _shared_beginning(chosen: str, rejected: str) -> tuple[str, str, str]:
    """``(prompt, chosen, rejected)`` of two texts whose prompt is what both begin with."""
    differ = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    shared = chosen[: next(differ, min(len(chosen), len(rejected)))]
    shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]  # end between words
    if not shared.strip():
        raise Unusable("no_shared_prompt")
    return shared, chosen[len(shared) :], rejected[len(shared) :]


def _with_system(prompt: str | list[Message], system: Any) -> str | list[Message]:
    """The prompt after the text of a system column, where the row has one."""
    if system is None or (isinstance(system, str) and not system.strip()):
        return prompt
    if not isinstance(system, str):
        raise Unusable("wrong_type", "the system column")
    if not is_whole(system):
        raise Unusable("broken_text")
    first = {"role": "system", "content": system}
    if isinstance(prompt, str):
        return [first, {"role": "user", "content": prompt}]
    if prompt[0]["role"] != "system":
        return [first, *prompt]
    if not same_message(prompt[0], first):
        raise Unusable("mismatched_prompts", "two different system messages")
    return prompt


def _number(value: Any) -> float:
    """A difficulty: a number, or a text that is one (CSV knows no others)."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable("no_difficulty")
    return number


def _category(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and is_whole(value) else ""
