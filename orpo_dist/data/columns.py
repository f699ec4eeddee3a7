"""Columns that are asked for and not there: what stands there instead, and how to name it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Columns
from orpo_dist.data.serialised import listed, unserialised

LIKE_PROMPT = (
    "question", "instruction", "query", "problem", "input", "messages", "conversations",
    "conversation", "dialogue", "dialog", "context", "text", "user", "human", "history", "request",
    "post", "body", "title",
)  # fmt: skip
LIKE_CHOSEN = (
    "chosen_response", "chosen_text", "chosen_answer", "preferred", "preferred_response", "better",
    "better_response", "accepted", "accept", "positive", "pos", "good",
    "response_j", "response_a", "response_w", "answer_w", "yw", "y_w", "output", "response",
    "answer", "completion",
)  # fmt: skip
LIKE_REJECTED = (
    "rejected_response", "rejected_text", "rejected_answer", "dispreferred", "non_preferred",
    "nonpreferred", "worse", "worse_response", "reject", "negative", "neg", "bad",
    "response_k", "response_b", "response_l", "answer_l", "yl", "y_l",
)  # fmt: skip
LIKE = {
    "prompt-text": LIKE_PROMPT, "text": LIKE_CHOSEN, "rejected-text": LIKE_REJECTED,
    "system": ("system", "system_prompt", "system_message"), "tools": ("tools", "functions"),
}  # fmt: skip
ASSISTANTS = ("assistant", "gpt", "bot", "model")
# Texts that are about the row.
ABOUT = re.compile(
    r"(^|[_\W])(ids?|idx|index|uuid|hash|source|src|category|type|kind|subset|split|dataset|lang|"
    r"language|models?|scores?|ratings?|ranks?|rationale|date|time|timestamp|url|licen[cs]e|author|"
    r"names?|tags?|labels?|topics?|domain|origin|status|metadata|version|chosen|rejected|unnamed)"
    r"($|[_\W])",
    re.IGNORECASE,
)
# What an answer may depend on, and where it could go; other columns are left alone in silence.
CONTEXT = {
    **dict.fromkeys(LIKE["system"], "set --system-column {name}"),
    **dict.fromkeys(LIKE["tools"], "set --tools-column {name}"),
    **dict.fromkeys(
        ("input", "history", "context", "contexts", "document", "documents", "passage",
         "background", "knowledge"),
        "put it into the prompt if the answers need it",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Head:
    """The first rows of a source. names: of all their columns; where: what to call the source."""

    where: str
    rows: Sequence[dict[str, Any]]
    names: list[str] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        return all(name in self.names for name in names)

    def first_of(self, *names: str) -> str | None:
        return next((name for name in names if name in self.names), None)

    def values(self, name: str) -> list[Any]:
        """The values of a column that are not null, message lists unserialised."""
        return [readable(row[name]) for row in self.rows if row.get(name) is not None]


def filled(value: Any) -> bool:
    """Whether a cell holds anything."""
    return len(value) > 0 if isinstance(value, Sized) else value is not None


def readable(value: Any) -> Any:
    """``unserialised``, for a look at a value: what cannot be read stays as it is."""
    try:
        return unserialised(value)
    except Unusable:
        return value


def as_list(value: Any) -> list[Any] | None:
    """The list that a value is or stands for as text; None for everything else."""
    try:
        found = listed(value)
    except Unusable:
        return None
    return found if isinstance(found, list) else None


def require(head: Head, wanted: str | None, flag: str) -> None:
    """``UserError`` if there is no column of this name; it names what looks like it."""
    if not head.names or wanted is None or wanted in head.names:
        return
    alike = lookalikes(head.names, wanted, LIKE.get(flag, ()))
    which = f" {quoted(alike[0])}" if alike else ""
    columns = ", ".join(map(quoted, head.names))
    raise UserError(
        f"{head.where}: has no column '{wanted}'; its columns are {columns} "
        f"(set --{flag}-column{which})"
    )


def require_prompt(head: Head, columns: Columns) -> None:
    """``UserError`` if there is no prompt, but a column that might be it: none is made up then."""
    used = {columns.prompt, columns.chosen, columns.rejected, columns.category, columns.difficulty}
    others = [name for name in head.names if name not in used and _holds_text(head, name)]
    likely = lookalikes(others, columns.prompt, LIKE_PROMPT)
    found = [*likely, *(n for n in others if n not in likely and not ABOUT.search(n))]
    found = [name for name in found if name not in LIKE["system"]] or found
    if not found:
        return
    empty = columns.prompt in head.names
    lacks = f"column '{columns.prompt}' is empty" if empty else f"has no column '{columns.prompt}'"
    listed = ", ".join(f"'{name}'" for name in found)
    there = f"there is a column {listed}" if len(found) == 1 else f"there are columns {listed}"
    raise UserError(
        f"{head.where}: {lacks}; {there}: set --prompt-text-column {quoted(found[0])}"
        + ("" if likely else " (or --implicit-prompt: the prompt is what both answers begin with)")
    )


def quoted(name: str) -> str:
    """A column's name for a shell."""
    return name if re.fullmatch(r"[\w.-]+", name) else f"'{name}'"


def lookalikes(names: Iterable[str], wanted: str, likely: Sequence[str]) -> list[str]:
    """The names that may stand for ``wanted``, best first: itself but for case and blanks, then
    those of ``likely`` in their order, then names that hold it (``user_prompt``)."""
    order = [_plain(wanted), *likely]
    plain = {name: _plain(name) for name in names}
    exact = sorted((n for n in plain if plain[n] in order), key=lambda n: order.index(plain[n]))
    holds = [n for n in plain if n not in exact and _plain(wanted) in plain[n]]
    return [*exact, *holds]


def _plain(name: str) -> str:
    return str(name).strip().lower().replace("-", "_").replace(" ", "_")


def _holds_text(head: Head, name: str) -> bool:
    """Whether there are texts, or conversations that wait for an answer."""
    return any(
        bool(value.strip()) if isinstance(value, str) else waits_for_answer(value)
        for value in head.values(name)
    )


def waits_for_answer(talk: Any) -> bool:
    """Whether a value is a list of messages of which the last is not the assistant's."""
    roles = roles_of(talk)
    return bool(roles) and None not in roles and roles[-1] not in ASSISTANTS


def roles_of(talk: Any) -> list[Any]:
    """The roles of a list of messages; None for an item that is no message."""
    items = talk if isinstance(talk, list) else []
    return [m.get("role", m.get("from")) if isinstance(m, dict) else None for m in items]


def score_columns(names: Iterable[str], columns: Columns) -> list[tuple[str, str]]:
    """Columns that say how good each side is, as ``(of chosen, of rejected)``."""
    known = list(names)
    found = []
    for name in known:
        for chosen, rejected in ((columns.chosen, columns.rejected), ("chosen", "rejected")):
            other = name.replace(chosen, rejected)
            about = re.search(r"score|rating|reward", name.replace(chosen, ""), re.IGNORECASE)
            if other != name and other in known and about and (name, other) not in found:
                found.append((name, other))
    return found
