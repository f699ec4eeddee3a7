"""Forms of preference data that tools and data sets share, recognised by their columns.

A form says which columns to read, and turns a row into rows that have them (``convert``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.data.columns import (
    ASSISTANTS,
    Head,
    as_list,
    filled,
    readable,
    roles_of,
    waits_for_answer,
)
from orpo_dist.data.ranked import LISTS, Ranking, find_ranking
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Columns
from orpo_dist.data.serialised import listed
from orpo_dist.data.transcripts import is_transcript

Convert = Callable[[dict[str, Any]], dict[str, Any]]

QUESTIONS = ("question", "input")
TALKS = ("conversations", "conversation", "messages")


@dataclass(frozen=True)
class Form:
    """title and reads: for people; columns: of the rows that ``convert`` makes; used: columns of
    the file that it reads besides those. ranking: where one row makes several pairs; makes_sides:
    whether the two answers have no columns of their own in the file."""

    title: str
    reads: str
    columns: Columns
    convert: Convert | None = None
    used: tuple[str, ...] = ()
    ranking: Ranking | None = None
    makes_sides: bool = False


@dataclass(frozen=True)
class Missing:
    """Why the columns are not of a form: what it needs, in words."""

    needs: str


def recognise(head: Head, columns: Columns) -> Form:
    """The form of the data: the one that ``columns.data_format`` asks for, or what it looks like.

    A prompt column asked for by name is taken as it is. Raises ``UserError`` where the form asked
    for needs columns that are not there, or reads others than those asked for by name.
    """
    if columns.data_format == "auto":
        named = columns.prompt != Columns.prompt
        looks = () if named or not head.names else FORMS
        found = (FORMS[name](head, columns) for name in looks)
        return next((form for form in found if isinstance(form, Form)), plain_pairs(columns))
    if not head.names or columns.data_format == "pairs":
        return plain_pairs(columns)
    asked = FORMS[columns.data_format](head, columns, forced=True)
    if isinstance(asked, Missing):
        raise UserError(
            f"{head.where}: data_format {columns.data_format} needs {asked.needs}; the columns are "
            f"{', '.join(head.names)}"
        )
    _check_named(head, columns, asked)
    return asked


def _check_named(head: Head, columns: Columns, form: Form) -> None:
    """``UserError`` if a column asked for by name is not one that the form reads."""
    default = Columns()
    read = {form.columns.prompt, form.columns.chosen, form.columns.rejected, *form.used}
    for setting, name in (
        ("prompt_text_column", columns.prompt != default.prompt and columns.prompt),
        ("text_column", columns.chosen != default.chosen and columns.chosen),
        ("rejected_text_column", columns.rejected != default.rejected and columns.rejected),
    ):
        if name and name not in read:
            raise UserError(
                f"{head.where}: data_format {columns.data_format} reads {form.reads}, so {setting} "
                f"{name} has no place; leave one of the two settings out"
            )


def plain_pairs(columns: Columns) -> Form:
    return Form("pairs", "", columns)


def _system(head: Head, columns: Columns) -> str | None:
    return columns.system or head.first_of("system")


def _prompt(head: Head, columns: Columns, *usual: str) -> str | None:
    """The prompt's column: the one asked for by name, else the first of the usual ones."""
    named = columns.prompt != Columns.prompt
    return head.first_of(columns.prompt) if named else head.first_of(*usual)


def orca(head: Head, columns: Columns, forced: bool = False) -> Form | Missing:
    question, system = _prompt(head, columns, *QUESTIONS), _system(head, columns)
    if not (question and system and head.has(columns.chosen, columns.rejected)):
        return Missing("system, question (or input), chosen and rejected")
    if not forced and head.first_of(columns.prompt, "instruction"):
        return Missing("no other prompt")
    found = replace(columns, prompt=question, system=system)
    return Form("Orca DPO pairs", f"{system} + {question} → prompt", found)


def alpaca(head: Head, columns: Columns, forced: bool = False) -> Form | Missing:
    pair_in_one = any(len(as_list(value) or ()) == 2 for value in head.values("output"))
    if not head.has("instruction") or not (
        head.has(columns.chosen, columns.rejected) or pair_in_one
    ):
        return Missing("instruction, and chosen and rejected or an output of two")
    if not forced and head.has(columns.prompt):
        return Missing("no other prompt")
    found = replace(columns, prompt=Columns.prompt, system=_system(head, columns))
    both = head.has(columns.chosen, columns.rejected)
    used = [name for name in ("history", "instruction", "input") if head.has(name)]
    parts = " + ".join([found.system, *used] if found.system else used)

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        made = {**row, found.prompt: _alpaca_prompt(row)}
        if not both:
            two = listed(row.get("output"))
            two = two if isinstance(two, list) and len(two) == 2 else [None, None]
            made |= {found.chosen: two[0], found.rejected: two[1]}
        return made

    if both:
        return Form("Alpaca pairs", f"{parts} → prompt", found, convert, tuple(used))
    reads = f"{parts} → prompt, output → chosen and rejected"
    return Form("Alpaca pairs", reads, found, convert, (*used, "output"), None, True)


def _alpaca_prompt(row: dict[str, Any]) -> Any:
    """Instruction and input on lines of their own, after the turns of ``history`` if there are.

    Raises ``Unusable`` where one of them is not what it is for.
    """
    parts: list[Any] = [part for part in (row.get("instruction"), row.get("input")) if filled(part)]
    if len(parts) == 1 and not isinstance(parts[0], str):
        asked = parts[0]  # messages
    elif all(isinstance(part, str) for part in parts):
        asked = "\n".join(part for part in parts if part.strip())
    else:
        raise Unusable("wrong_type")
    turns = listed(row.get("history"))
    if not turns or (isinstance(turns, str) and not turns.strip()):
        return asked
    if not (isinstance(asked, str) and isinstance(turns, list)):
        raise Unusable("wrong_type")
    return [*itertools.chain(*map(_turn, turns)), {"role": "user", "content": asked}]


def _turn(turn: Any) -> list[Any]:
    """The messages of ``[question, answer]``, or a message as it is."""
    if isinstance(turn, dict):
        return [turn]
    if not isinstance(turn, list) or len(turn) != 2:
        raise Unusable("wrong_type")
    return [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]


def sharegpt(head: Head, columns: Columns, forced: bool = False) -> Form | Missing:
    talk = next((t for t in TALKS if any(isinstance(v, list) for v in head.values(t))), None)
    if not (talk and head.has(columns.chosen, columns.rejected)):
        return Missing("conversations (a list of messages), chosen and rejected")
    waiting = any(map(waits_for_answer, head.values(talk)))
    if not forced and (head.has(columns.prompt) or are_transcripts(head, columns) or not waiting):
        return Missing("no other prompt, and conversations that wait for an answer")
    found = replace(columns, prompt=talk, system=_system(head, columns))
    system = f"{found.system} + " if found.system else ""
    return Form("ShareGPT pairs", f"{system}{talk} → prompt", found)


def ultrafeedback(head: Head, columns: Columns, forced: bool = False) -> Form | Missing:
    needed = (columns.prompt, columns.chosen, columns.rejected, "score_chosen", "score_rejected")
    if not head.has(*needed):
        return Missing("prompt, chosen, rejected, score_chosen and score_rejected")
    return Form("UltraFeedback binarized", "prompt + whole conversations with scores", columns)


def argilla(head: Head, columns: Columns, forced: bool = False) -> Form | Missing:
    prompt = _prompt(head, columns, "prompt", "instruction", *QUESTIONS)
    if prompt and head.has("chosen_response", "rejected_response"):
        if not forced and head.first_of(columns.chosen, columns.rejected):
            return Missing("no other answers")
        found = replace(
            columns, prompt=prompt, chosen="chosen_response", rejected="rejected_response",
            system=_system(head, columns),
        )  # fmt: skip
        system = f"{found.system} + " if found.system else ""
        reads = f"{system}{prompt} → prompt, chosen_response and rejected_response → the answers"
        return Form("Argilla pairs", reads, found)
    if head.has(columns.chosen, columns.rejected, "chosen_rating", "rejected_rating"):
        prompt = head.first_of(columns.prompt)
        if prompt or are_transcripts(head, columns):
            reads = "whole conversations with ratings" + (f" + {prompt}" if prompt else "")
            return Form("Argilla pairs", reads, columns)
    return Missing("instruction, chosen_response and rejected_response")


def hh(head: Head, columns: Columns, forced: bool = False) -> Form | Missing:
    if not head.has(columns.chosen, columns.rejected) or not are_transcripts(head, columns):
        return Missing("whole transcripts in chosen and rejected (Human: … Assistant: …)")
    if not forced and head.has(columns.prompt):
        return Missing("no other prompt")
    return Form("whole transcripts", "what both sides share → prompt", columns)


def ranked(head: Head, columns: Columns, forced: bool = False) -> Form | Missing:
    prompt = _prompt(head, columns, "prompt", "instruction", *QUESTIONS)
    ranking = find_ranking(head, prompt) if prompt else None
    if ranking is None:
        return Missing(
            f"a prompt (or instruction, question, input) and one of {', '.join(LISTS)}: a list of "
            "answers with a rank or score each, or of texts with a list of ranks or ratings beside"
        )
    if not forced and head.first_of(columns.chosen, columns.rejected):
        return Missing("no other answers")
    order = ranking.order if ranking.text is None else f"{ranking.answers}' {ranking.order}"
    reads = f"{prompt} → prompt, the best by {order} against each worse one"
    found = replace(columns, system=_system(head, columns))
    used = (ranking.prompt, ranking.answers, ranking.order)
    return Form("ranked answers", reads, found, None, used, ranking, True)


FORMS: dict[str, Callable[..., Form | Missing]] = {
    "ranked": ranked, "argilla": argilla, "orca": orca, "alpaca": alpaca, "sharegpt": sharegpt,
    "ultrafeedback": ultrafeedback, "hh": hh,
}  # fmt: skip


def are_transcripts(head: Head, columns: Columns) -> bool:
    """Whether most of the first rows hold their prompt within both sides."""
    sides = [
        (readable(row[columns.chosen]), readable(row[columns.rejected]))
        for row in head.rows
        if row.get(columns.chosen) is not None and row.get(columns.rejected) is not None
    ]
    whole = sum(_is_transcript(chosen) and _is_transcript(rejected) for chosen, rejected in sides)
    return whole * 2 > len(sides)


def _is_transcript(value: Any) -> bool:
    if isinstance(value, str):
        return is_transcript(value)
    return any(role not in (None, *ASSISTANTS) for role in roles_of(value))
