"""What trials are compared by: names, directions, and what makes a comparison wrong."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orpo_dist.base.metrics import METRICS as LOGGED
from orpo_dist.base.types import UserError


@dataclass(frozen=True)
class Compared:
    """A metric that trials can be ranked by.

    source: its name among the evaluations in metrics.jsonl. label: for people. incomparable:
    settings on which its scale depends, so that trials that differ in them cannot be ranked by it.
    ends: which no interval may pass.
    """

    source: str
    mode: str
    label: str
    incomparable: tuple[str, ...]
    ends: tuple[float, float]

    @classmethod
    def by(cls, logged: str) -> Compared:
        """By what is logged under a name."""
        metric = LOGGED[logged]
        ends = metric.low, metric.high
        return cls(f"eval/{logged}", metric.better, metric.label, metric.depends_on, ends)


METRICS = {
    "accuracy": Compared.by("rewards/accuracies"),
    "perplexity": replace(
        Compared.by("loss/sft"), label="perplexity of chosen answers", ends=(1.0, math.inf)
    ),
    "loss": Compared.by("loss/orpo"),
    **{
        name: Compared.by(name)
        for name in (
            "loss/sft", "loss/odds_ratio", "logps/margins", "logps/chosen", "logps/rejected",
            "log_odds", "rewards/margins",
        )
    },
}  # fmt: skip
# What other evaluations in this toolkit call them.
ALIASES = {
    "rewards/accuracies": "accuracy",
    "preference_accuracy": "accuracy",
    "eval_loss": "loss",
    "loss/orpo": "loss",
    "nll_loss": "loss/sft",
    "ppl": "perplexity",
    "margin": "logps/margins",
}


def find_metric(name: str) -> str:
    """The metric's own name; ``UserError`` with the nearest one for a name that is none."""
    plain = name if name in ALIASES else name.removeprefix("eval/").removeprefix("eval_")
    plain = ALIASES.get(plain, plain)
    if plain in METRICS:
        return plain
    close = difflib.get_close_matches(plain, [*METRICS, *ALIASES], n=1)
    guess = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(METRICS)}"
    raise UserError(f"metric '{name}': is not an evaluation metric; {guess}")


def refuse_incomparable(name: str, searched: Iterable[str]) -> None:
    """``UserError`` where the space holds a setting that changes the metric's scale."""
    for setting in searched:
        if setting in METRICS[name].incomparable:
            good = [other for other, m in METRICS.items() if setting not in m.incomparable]
            raise UserError(
                f"metric {name}: depends on {setting}, which is in the space, so that its values "
                "cannot be compared between trials"
                + (f"; use one of {', '.join(good)}" if good else "; take it out of the space")
            )


def evaluation_metrics(entry: Mapping[str, float]) -> dict[str, float]:
    """All metrics of one evaluation, from its entry in metrics.jsonl."""
    found = {n: float(entry[m.source]) for n, m in METRICS.items() if m.source in entry}
    if "perplexity" in found:
        found["perplexity"] = math.exp(min(found["perplexity"], 700.0))  # NaN stays NaN
    return found
