"""The audit as a whole: read, run the rules, gather the figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from orpo_dist.audit import lengths as measure
from orpo_dist.audit.corpus import Corpus, read_corpus
from orpo_dist.audit.groups import by_category, script_shares
from orpo_dist.audit.pairs import Hits, Texts, compare_pairs, find_leakage
from orpo_dist.audit.rules import BIASED, MANY_CUT, MANY_UNUSABLE, RULES, Finding, in_order
from orpo_dist.audit.text_rules import check_texts, main_scripts, script_switches
from orpo_dist.audit.tokens import TokenTable
from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.data import Limits, columns_of, held_out_paths, make_encoder
from orpo_dist.data.messages import words
from orpo_dist.data.reasons import NOTES, REASONS


@dataclass(frozen=True)
class Audit:
    """What was found. findings: worst first; figures: everything else, as plain JSON values."""

    corpus: Corpus
    findings: list[Finding]
    figures: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The whole audit as plain values; every flagged row with its ``file:row``."""
        return {
            **self.figures,
            "findings": [
                {
                    "rule": finding.rule,
                    "severity": finding.severity,
                    "count": finding.n,
                    "of": finding.of,
                    "sentence": finding.sentence,
                    "advice": finding.advice,
                    "rows": [
                        {"row": self.corpus.origins[row], "detail": detail}
                        for row, detail in finding.rows.items()
                    ],
                }
                for finding in self.findings
            ],
        }


def audit(config: ORPOConfig, tokenizer: Any = None, limits: Limits | None = None) -> Audit:
    """Audit ``config.data_path`` (against ``valid_data_path`` or ``valid_split``, if given).

    tokenizer: None leaves out what needs tokens, and lengths are in characters. limits: what a run
    would cut by; only with a tokenizer. Raises ``UserError`` where data cannot be read.
    """
    corpus = read_corpus(config.data_path, columns_of(config, training=True), config.train_split)
    if not corpus.examples:
        raise UserError(f"{', '.join(config.data_path)}: no readable pair; {_reasons(corpus)}")
    texts = Texts.of(corpus)
    hits = compare_pairs(corpus, texts)
    hits |= check_texts(corpus, texts.prompts, tokenizer)
    hits["lower_score"] = {
        pair: NOTES[note] for pair, notes in corpus.notes.items() for note in notes
    }
    paths, split = held_out_paths(config)
    if paths:
        held_out = read_corpus(paths, columns_of(config), split)
        hits |= find_leakage(corpus, texts, held_out, Texts.of(held_out))
    chosen = [words(example.chosen) for example in corpus.examples]
    scripts = [main_scripts(texts.prompts), main_scripts(chosen)]
    hits["script_switch"] = script_switches(*scripts)
    lengths, counted = _characters(corpus, texts), np.ones(len(corpus), bool)
    unusable, truncation = dict(corpus.unusable), {}
    if tokenizer is not None:
        known = Limits(rows=limits.rows if limits else None)
        table = TokenTable(corpus, make_encoder(tokenizer, config, known))
        lengths, counted = table.lengths, table.readable
        if not counted.any():
            raise UserError(f"{', '.join(config.data_path)}: the template accepts no pair")
        unusable |= {int(corpus.rows[pair]): why for pair, why in table.refused.items()}
        hits["double_bos"] |= table.double_bos
        hits["beyond_embedding"] = table.beyond
        hits |= _cut_by(table, limits or Limits())
        truncation = {"truncation": _truncation(table, limits or Limits())}
    figures = {
        "files": config.data_path,
        "evaluation_files": paths,
        "rows": len(corpus.origins),
        "pairs": int(counted.sum()),
        "unit": "characters" if tokenizer is None else "tokens",
        "left_out": _left_out(tokenizer is not None, bool(paths)),
        **measure.figures(lengths[counted]),
        **truncation,
        "scripts": script_shares(*scripts),
    }
    findings = _findings(corpus, unusable, hits, figures["length_bias"])
    figures["categories"] = by_category(corpus, lengths, counted, findings)
    return Audit(corpus, in_order(findings), figures)


def _truncation(table: TokenTable, limits: Limits) -> list[dict[str, Any]]:
    return measure.truncation_table(
        table.lengths[table.readable], table.shared[table.readable], limits
    )


def _left_out(has_tokenizer: bool, has_evaluation: bool) -> list[str]:
    said = []
    if not has_tokenizer:
        said.append(
            "no tokenizer: lengths are in characters; cutting, templates and token ids were not "
            "checked (add --model)"
        )
    if not has_evaluation:
        said.append("no evaluation data: leakage was not checked (add --valid-data-path)")
    return said


def _reasons(corpus: Corpus) -> str:
    counts = Counter(corpus.unusable.values())
    return "; ".join(f"{n} × {REASONS[why]}" for why, n in counts.most_common())


def _characters(corpus: Corpus, texts: Texts) -> np.ndarray:
    sides = [(len(words(e.chosen)), len(words(e.rejected))) for e in corpus.examples]
    return np.asarray([(len(p), *s) for p, s in zip(texts.prompts, sides, strict=True)], np.int64)


def _cut_by(table: TokenTable, limits: Limits) -> Hits:
    """Pairs that the limits cut, and those they leave without a difference."""
    after = measure.kept(table.lengths, limits)
    lost = (table.lengths - after).sum(1)
    same = measure.lost_difference(table.lengths, table.shared, limits) & table.readable
    return {
        "over_long": {
            int(pair): f"{lost[pair]} of {table.lengths[pair].sum()} tokens are cut"
            for pair in np.flatnonzero((lost > 0) & table.readable)
        },
        "lost_difference": {
            int(pair): f"the first {table.shared[pair]} tokens are the same"
            for pair in np.flatnonzero(same)
        },
    }


def _findings(
    corpus: Corpus, unusable: dict[int, str], hits: Hits, bias: dict[str, float]
) -> list[Finding]:
    findings = []
    for reason in dict.fromkeys(unusable.values()):
        rows = {row: REASONS[why] for row, why in unusable.items() if why == reason}
        grave = len(rows) >= MANY_UNUSABLE * len(corpus.origins)
        findings.append(
            Finding(reason, "error" if grave else "warning", len(rows), len(corpus.origins), rows)
        )
    for rule, pairs in hits.items():
        if not pairs:
            continue
        severity = RULES[rule].severity
        if rule == "over_long" and len(pairs) < MANY_CUT * len(corpus):
            severity = "note"
        rows = {int(corpus.rows[pair]): said for pair, said in sorted(pairs.items())}
        findings.append(Finding(rule, severity, len(pairs), len(corpus), rows))
    if bias["low"] > BIASED or bias["high"] < 1 - BIASED:
        longer = bias["low"] > BIASED
        n = bias["chosen_longer"] if longer else bias["rejected_longer"]
        decided = bias["chosen_longer"] + bias["rejected_longer"]
        words = {"longer": "longer" if longer else "shorter"}
        findings.append(Finding("length_bias", "warning", int(n), int(decided), words=words))
    return findings
