"""Ranked or scored lists of answers -> pairs: the best answer against each worse one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from orpo_dist.data.columns import Head, as_list
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Columns
from orpo_dist.data.serialised import listed

LISTS = ("answers", "completions", "responses", "generations", "candidates")
TEXTS = ("answer", "response", "text", "content", "output", "completion", "generation")
# Names of what the answers are ordered by -> whether the greater number is the better answer.
ORDERS = {
    "rank": False, "ranks": False, "ranking": False,
    "overall_score": True, "score": True, "rating": True, "reward": True,
    "fine-grained_score": True,
    "scores": True, "ratings": True, "rewards": True, "overall_scores": True,
}  # fmt: skip


@dataclass(frozen=True)
class Ranking:
    """Where the answers of a row and their order are.

    prompt: column of the question. answers: column of the list. text: key of an answer's text, None
    if the list holds texts. order: key of an answer, or column of a list beside the texts, for how
    good each is.
    """

    prompt: str
    answers: str
    text: str | None
    order: str

    def pairs(self, row: dict[str, Any], columns: Columns) -> tuple[list[dict[str, Any]], int]:
        """Rows in ``columns`` with two answers instead of the list, and how many equal the best.

        Raises ``Unusable`` ("unranked") where no answer is better than another.
        """
        ranked = self._ranked(row)
        if not ranked:
            raise Unusable("unranked")
        best = max(ranked, key=lambda answer: answer[0])  # the first of them
        worse = [text for goodness, text in ranked if goodness < best[0]]
        if not worse:
            raise Unusable("unranked")
        rest = {n: row[n] for n in row if n not in (self.prompt, self.answers, self.order)}
        rest = {columns.prompt: row.get(self.prompt), **rest, columns.chosen: best[1]}
        pairs = [{**rest, columns.rejected: text} for text in worse]
        return pairs, len(ranked) - len(worse) - 1

    def _ranked(self, row: dict[str, Any]) -> list[tuple[float, Any]]:
        """``(goodness, text)`` of the answers that have an order."""
        answers = listed(row.get(self.answers))
        orders = listed(row.get(self.order)) if self.text is None else None
        if not isinstance(answers, list):
            return []
        if self.text is not None:
            items = [item for item in answers if isinstance(item, dict)]
            answers = [item.get(self.text) for item in items]
            orders = [item.get(self.order) for item in items]
        if not isinstance(orders, list) or len(orders) != len(answers):
            return []
        sign = 1 if ORDERS[self.order] else -1
        scored = ((sign * _number(o), text) for o, text in zip(orders, answers, strict=True))
        return [(good, text) for good, text in scored if math.isfinite(good) and text is not None]


def find_ranking(head: Head, prompt: str) -> Ranking | None:
    """The ranked list among the columns, if there is one."""
    for name in LISTS:
        for found in filter(None, map(as_list, head.values(name))):
            if isinstance(found[0], dict):
                text = next((key for key in TEXTS if key in found[0]), None)
                order = next((key for key in ORDERS if key in found[0]), None)
                if text and order:
                    return Ranking(prompt, name, text, order)
            elif order := next((o for o in ORDERS if any(map(as_list, head.values(o)))), None):
                return Ranking(prompt, name, None, order)
    return None


def _number(value: Any) -> float:
    try:
        return math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
