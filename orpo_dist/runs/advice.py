"""Advice: rules that read a run's log and say in one sentence what goes wrong and what to try.

Pure functions of ``metrics.jsonl`` and ``data_report.json``: log, report and run.json agree, and a
resumed run says what the uninterrupted one would have said. ``docs/advice.md`` is ``table()``.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Any

Limits = Mapping[str, float]


@dataclass(frozen=True)
class Advice:
    """One finding. rule: its rule's name; finding: what was measured; remedy: what to try."""

    rule: str
    finding: str
    remedy: str
    stage: int | None = None

    @property
    def place(self) -> str:
        """``"stage 2: "``, or nothing for a run without stages."""
        return f"stage {self.stage}: " if self.stage else ""

    def __str__(self) -> str:
        return f"{self.place}{self.finding}; try {self.remedy}"


@dataclass(frozen=True)
class History:
    """What rules see: training lines and evaluations of one stage, and its data."""

    lines: Sequence[Mapping[str, float]]
    evaluations: Sequence[Mapping[str, float]]
    data: Mapping[str, Any]
    skipped: int = 0  # steps so far, of all stages, as they were no numbers

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return self.lines[-1].get("progress", 0.0) if self.lines else 0.0

    def values(self, name: str) -> list[float]:
        return [line[name] for line in self.lines if name in line]

    def ends(self, name: str) -> tuple[float, float]:
        """Means of the first and the last fifth of the lines, of three lines at least."""
        values = self.values(name)
        width = max(3, len(values) // 5)
        return fmean(values[:width]), fmean(values[-width:])

    def rises(self, name: str, least: float, errors: float) -> bool:
        """Whether the last fifth lies over the first by more than ``least`` and than the noise.

        errors: how many standard errors of the difference are still noise.
        """
        values = self.values(name)
        width = max(3, len(values) // 5)
        noise = math.sqrt((variance(values[:width]) + variance(values[-width:])) / width)
        first, last = self.ends(name)
        return last - first > max(least, errors * noise)

    def trusts(self, limits: Limits, *names: str) -> bool:
        """Whether there is enough of a run to speak of a trend in these metrics."""
        enough = len(self.lines) >= limits["lines"] and self.progress >= limits["progress"]
        return enough and all(
            math.isfinite(line.get(name, math.nan)) for line in self.lines for name in names
        )


@dataclass(frozen=True)
class Rule:
    """One row of the table. sign: when it speaks, with its limits by name in braces."""

    name: str
    sign: str
    remedy: str
    finds: Callable[[History, Limits], str | None]
    limits: Limits = field(default_factory=dict)


def advise(log: Iterable[Mapping[str, Any]], data: Mapping[str, Any] | None = None) -> list[Advice]:
    """What the rules find in a run, each of its stages by itself.

    log: lines of metrics.jsonl; data: data_report.json's part on the last stage's training data.
    """
    stages: dict[int | None, list[Mapping[str, Any]]] = {}
    for entry in log:
        stages.setdefault(entry.get("stage"), []).append(entry)
    last = next(reversed(stages), None)
    found = []
    for stage, entries in (stages or {None: []}).items():
        history = History(
            [entry for entry in entries if "loss/orpo" in entry],
            [entry for entry in entries if "eval/loss" in entry],
            data or {} if stage == last else {},
            int(max(entry.get("skipped_steps", 0) for entry in entries)) if entries else 0,
        )
        for rule in RULES:
            if finding := rule.finds(history, rule.limits):
                found.append(Advice(rule.name, finding, rule.remedy, stage))
    return found


# --- what the rules look for


def _not_finite(history: History, limits: Limits) -> str | None:
    if history.skipped:
        steps = f"{history.skipped} step{'s' * (history.skipped > 1)}"
        return f"{steps} skipped, with no finite loss or gradient (bad_steps.jsonl has their rows)"
    for line in history.lines:
        for name in ("loss/orpo", "grad_norm"):
            if not math.isfinite(line.get(name, 0.0)):
                return f"{name} is {line[name]} at step {line['step']:.0f}"
    return None


def _exploding(history: History, limits: Limits) -> str | None:
    norms = history.values("grad_norm")
    lines, last = int(limits["lines"]), int(limits["last"])
    before: list[float] = []  # sorted, so that its middle is the median
    for at, norm in enumerate(norms):
        now = min(norms[at : at + last])
        usual = before[len(before) // 2] if before else math.inf
        if at >= lines and at + last <= len(norms) and now > limits["times"] * usual:
            return (
                f"gradients explode: their norm was {usual:.3g} and goes over {now:.3g} at step "
                f"{history.lines[at]['step']:.0f}"
            )
        insort(before, norm)
    return None


def _nll_rising(history: History, limits: Limits) -> str | None:
    if not history.trusts(limits, "loss/sft"):
        return None
    values = history.values("loss/sft")
    width = max(3, len(values) // 5)
    low = min(fmean(values[at : at + width]) for at in range(len(values) - width + 1))
    now = history.ends("loss/sft")[1]
    if not now - low > limits["rise"]:
        return None
    return f"the NLL of the chosen answers rises: from {low:.2f} to {now:.2f} nats per token"


def _both_falling(history: History, limits: Limits) -> str | None:
    names = ("logps/chosen", "logps/rejected")
    if not history.trusts(limits, *names):
        return None
    ends = [history.ends(name) for name in names]
    if not all(first - last > limits["fall"] for first, last in ends):
        return None
    (chosen, chosen_now), (rejected, rejected_now) = ends
    return (
        f"both log-probs fall: chosen from {chosen:.2f} to {chosen_now:.2f}, rejected from "
        f"{rejected:.2f} to {rejected_now:.2f} nats per token"
    )


def _flat(history: History, limits: Limits) -> str | None:
    if not history.trusts(limits, "logps/margins", "rewards/accuracies"):
        return None
    margins, shares = history.ends("logps/margins"), history.ends("rewards/accuracies")
    moved = history.rises("logps/margins", limits["margin"], limits["errors"]) or history.rises(
        "rewards/accuracies", limits["share"], limits["errors"]
    )
    if moved or shares[1] >= limits["learnt"] or not history.lines[-1].get("orpo_alpha", 1.0):
        return None
    return (
        f"margins are flat: chosen − rejected went from {margins[0]:+.3f} to {margins[1]:+.3f} "
        f"nats per token, accuracy from {shares[0]:.0%} to {shares[1]:.0%}"
    )


def _perfect(history: History, limits: Limits) -> str | None:
    first = history.lines[: int(limits["lines"])]
    if len(first) < limits["lines"] or first[-1].get("progress", 1.0) > limits["progress"]:
        return None
    share = fmean(line.get("rewards/accuracies", 0.0) for line in first)
    if share < limits["share"]:
        return None
    return f"accuracy is {share:.1%} from the start: the model tells the answers apart already"


def _worse_held_out(history: History, limits: Limits) -> str | None:
    losses = [evaluation["eval/loss"] for evaluation in history.evaluations]
    if not losses or not all(map(math.isfinite, losses)):
        return None
    best = min(losses)
    at = losses.index(best)
    if len(losses) - 1 - at < limits["evaluations"] or losses[-1] < best * (1 + limits["rise"]):
        return None
    return (
        f"the held-out loss rises: {losses[-1]:.4f} after {best:.4f} at step "
        f"{history.evaluations[at]['step']:.0f}"
    )


def _truncated(history: History, limits: Limits) -> str | None:
    pairs = history.data.get("pairs") or 0
    cuts = {part: cut["count"] for part, cut in history.data.get("truncated", {}).items()}
    worst = max(cuts, key=lambda part: cuts[part], default=None)
    if worst is None or not pairs or cuts[worst] <= limits["share"] * pairs:
        return None
    what = "prompts" if worst == "prompt" else f"{worst} answers"
    return f"{cuts[worst]} of {pairs} {what} are cut"


TREND = {"lines": 10, "progress": 0.3}

RULES = (
    Rule(
        "not_finite",
        "a loss or gradient norm is NaN or infinite, or was and its step was skipped",
        "a lower --lr (a tenth), --max-grad-norm 1, and --mixed-precision bf16 or none, not fp16",
        _not_finite,
    ),
    Rule(
        "exploding_gradients",
        "{last:.0f} lines in a row have a `grad_norm` over {times:.0f} times the median of the "
        "lines before ({lines:.0f} or more; norms are logged before clipping)",
        "a lower --lr (a third), a longer --warmup-ratio, or --max-grad-norm 1 or less",
        _exploding,
        {"lines": 10, "last": 3, "times": 10},
    ),
    Rule(
        "nll_rising",
        "`loss/sft` is over {rise:g} nats above its lowest ({lines:.0f} lines and {progress:.0%} "
        "of the run or more)",
        "a lower --lr, or a lower --orpo-alpha so that the odds term does not push the answers "
        "themselves away (with a curriculum, harder pairs may be all there is to it)",
        _nll_rising,
        {**TREND, "rise": 0.2},
    ),
    Rule(
        "both_falling",
        "`logps/chosen` and `logps/rejected` both fell by over {fall:g} nats ({lines:.0f} lines "
        "and {progress:.0%} of the run or more)",
        "a lower --orpo-alpha (a half), or a lower --lr: the margin is bought with the quality of "
        "the chosen answers",
        _both_falling,
        {**TREND, "fall": 0.1},
    ),
    Rule(
        "flat_margins",
        "`logps/margins` rose by less than {margin:g} nats and accuracy by less than {share:.0%}, "
        "or neither by {errors:.0f} standard errors of its noise, and accuracy is below "
        "{learnt:.0%} ({lines:.0f} lines and {progress:.0%} of the run or more; not at alpha 0)",
        "a higher --lr (three times), a higher --orpo-alpha, more --epochs, and 'orpo-dist data "
        "audit' for contradictory or nearly equal pairs",
        _flat,
        {"lines": 20, "progress": 0.5, "margin": 0.02, "share": 0.05, "errors": 2, "learnt": 0.95},
    ),
    Rule(
        "perfect_accuracy",
        "`rewards/accuracies` averages {share:.0%} or more over the first {lines:.0f} lines, "
        "within the first {progress:.0%} of the run",
        "harder pairs (answers of the model itself as rejected), and 'orpo-dist data audit' for "
        "what gives the answers away: length, template, end tokens",
        _perfect,
        {"lines": 5, "progress": 0.4, "share": 0.98},
    ),
    Rule(
        "held_out_rising",
        "`eval/loss` is {rise:.0%} above its best, and {evaluations:.0f} or more evaluations have "
        "not beaten that",
        "--early-stopping-patience 2 (it keeps the best model), fewer --epochs, a lower --lr, or "
        "more data",
        _worse_held_out,
        {"evaluations": 2, "rise": 0.01},
    ),
    Rule(
        "truncated",
        "over {share:.0%} of the prompts, of the chosen or of the rejected answers are cut",
        "a higher --max-prompt-length, --max-completion-length or --max-seq-length ('orpo-dist "
        "data audit' shows what each would cost), or --overlong skip",
        _truncated,
        {"share": 0.5},
    ),
)  # fmt: skip


def table() -> str:
    """The rules with their thresholds, as the Markdown table of the docs."""
    rows = ["| rule | speaks when | what to try |", "|---|---|---|"]
    for rule in RULES:
        rows.append(f"| `{rule.name}` | {rule.sign.format(**rule.limits)} | {rule.remedy} |")
    return "\n".join(rows) + "\n"
