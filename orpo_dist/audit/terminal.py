"""The audit for the terminal: what to do first, then the figures."""

from __future__ import annotations

from typing import Any

from orpo_dist.audit.audit import Audit

NAMED = 3  # rows named per finding; --json has them all


def format_audit(found: Audit) -> str:
    """The whole audit as text without control characters, whatever the data hold."""
    figures = found.figures
    lines = [f"{figures['pairs']} pairs in {figures['rows']} rows of {', '.join(figures['files'])}"]
    lines += [f"not checked: {said}" for said in figures["left_out"]]
    lines.append("")
    for finding in found.findings:
        lines.append(f"{finding.severity:<8} {finding.sentence}")
        named = [
            f"{found.corpus.origins[row]} ({detail})"
            for row, detail in list(finding.rows.items())[:NAMED]
        ]
        if named:
            lines.append(f"         {'; '.join(named)}{'; ...' * (len(finding.rows) > NAMED)}")
        lines.append(f"         -> {finding.advice}")
    if not found.findings:
        lines.append("no rule fired")
    for table in (_lengths(figures), _truncation(figures), _scripts(figures), _parts(figures)):
        lines += ["", *table] if table else []
    return "\n".join(printable(line) for line in lines)


def printable(text: str) -> str:
    """Without what could move a terminal's cursor or hide text."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _lengths(figures: dict[str, Any]) -> list[str]:
    bias = figures["length_bias"]
    table = [f"{figures['unit']:<12}{'median':>9}{'95 %':>9}{'longest':>9}{'total':>12}"]
    table += [
        f"{part:<12}{row['median']:>9}{row['p95']:>9}{row['max']:>9}{row['total']:>12}"
        for part, row in figures["lengths"].items()
    ]
    return [*table, bias_sentence(bias)]


def bias_sentence(bias: dict[str, float]) -> str:
    return (
        f"chosen is longer in {bias['chosen_longer']} pairs, rejected in "
        f"{bias['rejected_longer']}, equal in {bias['equal']}: 'the longer answer wins' is right "
        f"in {bias['accuracy']:.1%} (95 % interval {bias['low']:.1%} to {bias['high']:.1%})"
    )


def _truncation(figures: dict[str, Any]) -> list[str]:
    if "truncation" not in figures:
        return []
    table = [
        f"{'what limits would cost':<36}{'pairs cut':>11}{'tokens lost':>13}{'same after':>12}"
    ]
    return table + [
        f"{setting_name(row):<36}{row['share_cut']:>11.1%}{row['share_lost']:>13.1%}"
        f"{row['pairs_without_difference']:>12}"
        for row in figures["truncation"]
    ]


def setting_name(row: dict[str, Any]) -> str:
    return f"{row['setting']} {'' if row['value'] is None else row['value']}".rstrip()


def _scripts(figures: dict[str, Any]) -> list[str]:
    table = [f"{'script (not language)':<24}{'prompts':>9}{'chosen':>9}"]
    rows = sorted(figures["scripts"].items(), key=lambda item: -item[1]["prompt"])
    return table + [f"{name:<24}{n['prompt']:>9}{n['chosen']:>9}" for name, n in rows]


def _parts(figures: dict[str, Any]) -> list[str]:
    if not figures["categories"]:
        return []
    table = [
        f"{'category':<24}{'pairs':>8}{'prompt':>8}{'chosen':>8}{'rejected':>9}{'longer wins':>20}"
        "  flagged"
    ]
    for name, part in figures["categories"].items():
        bias, medians = part["length_bias"], [row["median"] for row in part["lengths"].values()]
        wins = f"{bias['accuracy']:.0%} ({bias['low']:.0%} to {bias['high']:.0%})"
        flagged = ", ".join(f"{rule} {n}" for rule, n in part["flagged"].items())
        table.append(
            f"{name[:23]:<24}{part['pairs']:>8}{medians[0]:>8}{medians[1]:>8}{medians[2]:>9}"
            f"{wins:>20}  {flagged}"
        )
    return table
