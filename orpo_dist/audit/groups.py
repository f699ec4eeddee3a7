"""Figures of parts of the data: scripts and categories."""

from __future__ import annotations

from typing import Any

import numpy as np

from orpo_dist.audit import lengths as measure
from orpo_dist.audit.corpus import Corpus
from orpo_dist.audit.rules import Finding
from orpo_dist.audit.text_rules import SCRIPTS


def script_shares(prompts: np.ndarray, chosen: np.ndarray) -> dict[str, dict[str, int]]:
    """Script -> how many prompts and chosen answers are mostly in it."""
    counts = [np.bincount(column, minlength=len(SCRIPTS)) for column in (prompts, chosen)]
    return {
        name: {"prompt": int(asked), "chosen": int(answered)}
        for name, asked, answered in zip(SCRIPTS, *counts, strict=True)
        if asked or answered
    }


def by_category(
    corpus: Corpus, lengths: np.ndarray, counted: np.ndarray, findings: list[Finding]
) -> dict[str, dict[str, Any]]:
    """Figures of each category, where there are any: size, lengths, length bias, flagged pairs."""
    names, numbers = np.unique(corpus.categories, return_inverse=True)
    if len(names) == 1 and names[0] == "":
        return {}
    found = {}
    for number, name in enumerate(names.tolist()):
        mine = (numbers == number) & counted
        if not mine.any():
            continue
        rows = set(corpus.rows[numbers == number].tolist())
        flagged = {f.rule: n for f in findings if (n := len(rows & f.rows.keys()))}
        found[name] = {
            "pairs": int(mine.sum()),
            "lengths": measure.summarise(lengths[mine]),
            "length_bias": measure.length_bias(lengths[mine]),
            "flagged": flagged,
        }
    return found
