"""One message of a conversation, whoever wrote it down -> the form that chat templates read."""

from __future__ import annotations

import json
from typing import Any

from orpo_dist.data.reasons import Unusable

# role, content, and whatever else a template may read: reasoning_content, tool_calls, name, ...
Message = dict[str, Any]

ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "chatgpt": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip

# Rows and templates call the thought before an answer by one of these names. transformers 5.23
# fills in the others when it renders; here the thought has to be found too, whatever its name.
REASONING = ("reasoning_content", "reasoning", "thinking")

PLAIN = {"role", "content"}


def message_of(item: Any) -> Message:
    """A message with a role that templates know, text as content, and every other key it has.

    Keys without a value are dropped: tables write them into every row. Raises ``Unusable``.
    """
    if not isinstance(item, dict):
        raise Unusable("wrong_type")
    item = without_nulls(item)
    role, content = (
        item.pop(first, item.pop(second, None))
        for first, second in (("role", "from"), ("content", "value"))
    )
    if not isinstance(role, str):
        raise Unusable("wrong_type")
    role = role.strip().lower()
    if role not in ROLES:
        raise Unusable("unknown_role", role[:40])
    message: Message = {"role": ROLES[role], "content": content, **item}
    if role == "function_call":
        message |= _call_of(content)
    if isinstance(message.get("tool_calls"), str):
        message["tool_calls"] = _parsed(message["tool_calls"])
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
    _join_parts(message)
    if thought := next((message[n] for n in REASONING if isinstance(message.get(n), str)), ""):
        message |= dict.fromkeys(REASONING, thought)
    if message["content"] is None and len(message) > len(PLAIN):
        message["content"] = ""  # a call alone
    if not isinstance(message["content"], str):
        raise Unusable("wrong_type")
    if not is_whole(json.dumps(message, ensure_ascii=False, default=str)):
        raise Unusable("broken_text")
    return message


def without_nulls(value: Any) -> Any:
    """The same, without keys that have no value: a column of structs has all keys in every row."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def is_whole(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON escapes may leave half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _join_parts(message: Message) -> None:
    """Content in parts as one text; a thought among them becomes the message's reasoning."""
    content = message["content"]
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return
    parts = [_part(part) for part in content]
    message["content"] = "".join(text for kind, text in parts if kind == "text")
    if thought := "".join(text for kind, text in parts if kind != "text"):
        message["reasoning_content"] = message.get("reasoning_content", "") + thought


def _part(part: Any) -> tuple[str, str]:
    """Kind (``text`` or a kind of thought) and text of a part; ``Unusable`` for images and such."""
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, dict):
        raise Unusable("wrong_type")
    kind = part.get("type") or next((key for key in part if key != "text"), "text")
    if kind not in ("text", "thinking", "reasoning"):
        raise Unusable("not_text", str(kind)[:40])
    text = part.get(kind, "")
    if isinstance(text, list):  # a thought in parts of its own
        text = "".join(_part(one)[1] for one in text)
    if not isinstance(text, str):
        raise Unusable("wrong_type")
    return kind, text


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _call_of(content: Any) -> Message:
    """What a ``function_call`` message of ShareGPT says: its content is the call as JSON."""
    calls = _parsed(content) if isinstance(content, str) else content
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return {}
    return {
        "content": "",
        "tool_calls": [{"type": "function", "function": call} for call in calls],
    }


def words(answer: str | Message) -> str:
    """All that an answer says, as one text: its thought, its content and its calls."""
    if isinstance(answer, str):
        return answer
    calls = answer.get("tool_calls")
    parts = [reasoning_of(answer), answer["content"], json.dumps(calls) if calls else ""]
    return "\n".join(part for part in parts if part)


def reasoning_of(message: Message) -> str:
    """The thought that a message carries beside its content."""
    return str(message.get(REASONING[0]) or "")


def same_message(one: Message, other: Message) -> bool:
    """Equal but for white space around the content."""
    return {**one, "content": one["content"].strip()} == {
        **other, "content": other["content"].strip()
    }  # fmt: skip
