"""What happened to the data on its way in: counts by reason, token lengths, cuts."""

from __future__ import annotations

from typing import Any

import numpy as np

from orpo_dist.data.encode import Encoded, Limits
from orpo_dist.data.reasons import NOTES, REASONS, Unusable

FIRST_OFFENDERS = 5
LOUD_SHARE = 0.25  # cutting more than a quarter of all prompts or answers is worth a warning


class DataReport:
    """Collects counts while rows stream by; ``finish`` gives data_report.json."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.sources: list[dict[str, Any]] = []
        self.skipped: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, dict[str, Any]] = {}
        self.forms: dict[str, int] = {}
        self.said: list[tuple[bool, str]] = []  # how the sources were read
        self.full_lengths: list[tuple[int, int, int]] = []

    def start_source(self, path: str) -> None:
        self.sources.append({"path": path, "rows": 0, "pairs": 0})

    def skip(self, origin: str, why: Unusable) -> None:
        """Count a row that is left out."""
        _count(self.skipped, why.reason, REASONS[why.reason], why.at(origin))

    def note(self, origin: str, note: str) -> None:
        """Count a row that is used, and worth a word; note: a key of ``NOTES``."""
        _count(self.notes, note, NOTES[note], origin)

    def keep(self, origin: str, pair: Encoded) -> None:
        """Count a pair, in which form its prompt came, and what is worth knowing about it."""
        for note in pair.notes:
            self.note(origin, note)
        self.forms[pair.form] = self.forms.get(pair.form, 0) + 1
        self.sources[-1]["pairs"] += 1
        self.full_lengths.append(pair.full_lengths)

    def finish(self, lengths: np.ndarray, categories: dict[str, int]) -> dict[str, Any]:
        """The report as plain JSON values. lengths: (N, 3) after truncation."""
        full = np.asarray(self.full_lengths, dtype=np.int64).reshape(-1, 3)
        cut = full > lengths
        parts = ("prompt", "chosen", "rejected")
        return {
            "rows": sum(source["rows"] for source in self.sources),
            "pairs": len(full),
            "sources": self.sources,
            "skipped": self.skipped,
            "notes": self.notes,
            "forms": self.forms,
            "said": self.said,
            "tokens": {part: _summary(full[:, i]) for i, part in enumerate(parts) if len(full)},
            "tokens_kept": int(lengths.sum()),
            "truncated": {
                part: {"count": int(cut[:, i].sum()), "tokens": int((full - lengths)[:, i].sum())}
                for i, part in enumerate(parts)
            },
            "limits": {
                "max_prompt_length": self.limits.prompt,
                "max_completion_length": self.limits.completion,
                "max_seq_length": self.limits.sequence,
            },
            "categories": categories,
            "category_names": list(categories),
        }


def _count(entries: dict[str, dict[str, Any]], key: str, meaning: str, origin: str) -> None:
    entry = entries.setdefault(key, {"count": 0, "meaning": meaning, "first": []})
    entry["count"] += 1
    if len(entry["first"]) < FIRST_OFFENDERS:
        entry["first"].append(origin)


def _summary(lengths: np.ndarray) -> dict[str, int]:
    median, p95 = np.percentile(lengths, [50, 95], method="higher")
    return {
        "median": int(median),
        "p95": int(p95),
        "max": int(lengths.max()),
        "total": int(lengths.sum()),
    }


def sentences(report: dict[str, Any]) -> list[tuple[bool, str]]:
    """``(loud, sentence)`` for what was skipped, what is worth knowing, and what was cut."""
    counted = [(True, text) for text in (skip_sentence(report), note_sentence(report)) if text]
    return counted + truncation_sentences(report)


def skip_sentence(report: dict[str, Any]) -> str:
    """The skipped rows in one line, or an empty string."""
    if not report["skipped"]:
        return ""
    total = sum(entry["count"] for entry in report["skipped"].values())
    reasons = "; ".join(
        f"{entry['count']} × {entry['meaning']} (first: {entry['first'][0]})"
        for entry in sorted(report["skipped"].values(), key=lambda entry: -entry["count"])
    )
    return f"skipped {total} of {report['rows']} rows: {reasons}"


def note_sentence(report: dict[str, Any]) -> str:
    """What is worth knowing about the rows that are used, in one line, or an empty string."""
    return "; ".join(
        f"{entry['count']} × {entry['meaning']} (first: {entry['first'][0]})"
        for entry in report["notes"].values()
    )


def truncation_sentences(report: dict[str, Any]) -> list[tuple[bool, str]]:
    """``(loud, sentence)`` for the prompts and the answers that were cut, if any were."""
    said = []
    pairs, cut, tokens = report["pairs"], report["truncated"], report["tokens"]
    if cut["prompt"]["count"]:
        share = cut["prompt"]["count"] / pairs
        lost = cut["prompt"]["tokens"] / tokens["prompt"]["total"]
        sentence = (
            f"{cut['prompt']['count']} of {pairs} prompts ({share:.0%}) are cut on the left, "
            f"{lost:.0%} of all prompt tokens are dropped; --max-prompt-length "
            f"{tokens['prompt']['p95']} would keep 95 % of the prompts whole"
        )
        said.append((share > LOUD_SHARE or lost > LOUD_SHARE, sentence))
    answers = cut["chosen"]["count"] + cut["rejected"]["count"]
    if answers:
        share = answers / (2 * pairs)
        longest = max(tokens["chosen"]["p95"], tokens["rejected"]["p95"])
        sentence = (
            f"{answers} of {2 * pairs} answers ({share:.0%}) are cut on the right; 95 % of them "
            f"have up to {longest} tokens (--max-completion-length, --max-seq-length)"
        )
        said.append((share > LOUD_SHARE, sentence))
    return said
