"""Message lists that a tool has written as text: JSON, Python, pandas and numpy ``repr``.

Nothing is evaluated: a text is JSON, or Python's parser reads it and only literals are taken from
the tree. An answer that is JSON or code of another kind stays the text it is.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import tokenize
import warnings
from collections.abc import Iterator
from typing import Any

from orpo_dist.data.messages import ROLES
from orpo_dist.data.reasons import Unusable

# Decides for nearly every cell: a bracket, then a message's key. The quote in front: JSON in JSON.
_KEYS = "role|from|content|value|name|id|type|weight|tool_calls|tool_call_id|reasoning_content"
_MESSAGES = re.compile(rf"""\s*(?:array\(\s*)?(?:[\[(]\s*)?\{{\s*(['"])(?:{_KEYS})\1\s*:""")
_ENCODED = re.compile(rf"""\s*['"][\\'"\s]*(?:\[\s*)?\{{\s*\\*['"](?:{_KEYS})\\*['"]\s*:""")
# What a broken text must show, for it may be an answer in JSON that was cut off: a role, or a list.
_SURE = re.compile(
    r"""(['"])(?:role|from)\\*\1\s*:\s*\\*['"](?:system|user|human|assistant|gpt|tool)\\*['"]"""
    r"""|\A\s*(?:array\(\s*)?\[\s*\{\s*(['"])content\2"""
)
_LIST = re.compile(r"\s*(?:array\(\s*)?[\[{]")

_NAMES = {"null": None, "true": True, "false": False, "nan": None, "NaN": None, "inf": None}
_CALLS = {"array", "float64", "float32", "int64", "int32", "str_", "bool_", "list", "dict"}
_VALUE_ENDS, _VALUE_BEGINS = ("}", "]", ")"), ("{", "[")


class _Code(Exception):
    """The text is a program, or goes on after its list: no ``repr`` of data."""


def unserialised(value: Any) -> Any:
    """A text that is a serialised message or list of messages as what it stands for.

    Every other value is returned as it is. Raises ``Unusable`` ("serialised") if the text is such
    a list but was cut off, shortened with "..." or is broken.
    """
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        items = [unserialised(item) for item in value]  # a list of messages, each as a text
        return items if all(isinstance(item, dict) for item in items) else value
    if not isinstance(value, str):
        return value
    if _ENCODED.match(value):
        inner = _read(value, str, bool(_SURE.search(value)))
        return value if inner == value else unserialised(inner)
    if not _MESSAGES.match(value):
        return value
    found = _read(value, (list, dict), bool(_SURE.search(value)))
    messages = found if isinstance(found, list) else [found]
    return found if messages and all(map(_is_message, messages)) and _known(messages) else value


def listed(value: Any) -> Any:
    """A text that holds any list or object, as JSON or ``repr``, as that; other values as they are.

    For columns that hold lists by their meaning (tools, ranked answers). Raises ``Unusable``
    ("serialised") if it begins like a list and cannot be read.
    """
    if not isinstance(value, str) or not _LIST.match(value):
        return value
    return _read(value, (list, dict), sure=True)


def _read(text: str, kind: type | tuple[type, ...], sure: bool) -> Any:
    """The value that the text stands for; the text itself where it turns out to be code.

    sure: a text that cannot be read is refused; else it stays a text too.
    """
    try:
        return _literal(text, kind)
    except _Code:
        return text
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        if sure:
            raise Unusable("serialised") from error
        return text


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    if isinstance(item.get("role"), str):
        return not {"content", "tool_calls", "reasoning_content"}.isdisjoint(item)
    return isinstance(item.get("from"), str) and "value" in item


def _known(messages: list[dict[str, Any]]) -> bool:
    """Whether a role is one of a conversation: ``{"role": "admin", ...}`` is an answer."""
    return any(str(item.get("role", item.get("from"))).lower() in ROLES for item in messages)


def _literal(text: str, kind: type | tuple[type, ...]) -> Any:
    """The one JSON or Python value that the text is; ``_Code`` if it is more, or another kind."""
    try:
        found = json.loads(text, strict=False)
    except ValueError:
        found = _value(_tree(text.strip()))
    if not isinstance(found, kind):
        raise _Code
    return found


def _tree(text: str) -> ast.expr:
    """Python's reading of the text, after commas were put where numpy leaves them out."""
    with warnings.catch_warnings():  # unknown escapes such as \d
        warnings.simplefilter("ignore")
        if _MESSAGES.match(text):  # no 'a' 'b', which Python would take for one text
            with contextlib.suppress(SyntaxError):
                return ast.parse(text, mode="eval").body
        return ast.parse(_with_commas(text), mode="eval").body


def _value(node: ast.expr) -> Any:
    """The value of a literal; ``array([...], dtype=object)`` and its like are what they hold."""
    match node:
        case ast.Constant(value=value) if value is not Ellipsis and not isinstance(value, bytes):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            named = [_value(key) for key in keys if key is not None]
            return dict(zip(map(str, named), map(_value, values), strict=True))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[inner, *_]):
            if name in _CALLS:
                return _value(inner)
        case ast.Constant(value=value) if value is Ellipsis:
            raise ValueError("shortened")
    raise _Code


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    """Python's tokens; raises ``ValueError`` where the text cannot be cut into them."""
    try:
        yield from tokenize.generate_tokens(io.StringIO(text).readline)
    except (tokenize.TokenError, SyntaxError) as error:
        raise ValueError("cannot be read") from error


def _with_commas(text: str) -> str:
    """numpy writes ``[{...} {...}]`` and ``['a' 'b']``: the same with commas between the values.

    Raises ``_Code`` where text follows the closing bracket, and ``ValueError`` where none closes.
    """
    lines = text.split("\n")  # as the positions of tokens count them
    places: list[tuple[int, int]] = []
    depth, before = 0, None
    for token in _tokens(text):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if before is not None and _ends(before) and _begins(token):
            places.append(before.end)
        before = token
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        if depth == 0 and _ends(token):
            break
    else:
        raise ValueError("cut off")
    line, column = before.end
    if lines[line - 1][column:].strip() or "".join(lines[line:]).strip():
        raise _Code
    for line, column in reversed(places):
        lines[line - 1] = f"{lines[line - 1][:column]},{lines[line - 1][column:]}"
    return "\n".join(lines)


def _ends(token: tokenize.TokenInfo) -> bool:
    return token.string in _VALUE_ENDS or token.type in (tokenize.STRING, tokenize.NUMBER)


def _begins(token: tokenize.TokenInfo) -> bool:
    return token.string in _VALUE_BEGINS or token.type in (tokenize.STRING, tokenize.NUMBER)
