"""What trials are compared by: names, directions, and what makes a comparison wrong."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orpo_dist.base.types import UserError


@dataclass(frozen=True)
class Metric:
    """source: its name among the evaluations in metrics.jsonl. label: for people.

    incomparable: settings on which its scale depends, so that trials that differ in them cannot be
    ranked by it.
    """

    source: str
    mode: str
    label: str
    incomparable: tuple[str, ...] = ()


_PAIRS = ("valid_data_path", "valid_split")
_TOKENS = (*_PAIRS, "model", "chat_template", "max_completion_length")  # what a mean is taken over
_NLL = (*_TOKENS, "nll_scope")
_ALPHA = ("orpo_alpha", "orpo_alpha_schedule", "orpo_alpha_start", "orpo_alpha_warmup")
_REWARD = (*_TOKENS, *_ALPHA)
METRICS = {
    "accuracy": Metric("eval/rewards/accuracies", "max", "preference accuracy", _PAIRS),
    "perplexity": Metric("eval/loss/sft", "min", "perplexity of chosen answers", _NLL),
    "loss": Metric("eval/loss/orpo", "min", "ORPO loss", (*_NLL, *_ALPHA, "loss_form")),
    "loss/sft": Metric("eval/loss/sft", "min", "SFT loss", _NLL),
    "loss/odds_ratio": Metric("eval/loss/odds_ratio", "min", "odds-ratio loss", _TOKENS),
    "logps/margins": Metric("eval/logps/margins", "max", "margin, nats per token", _TOKENS),
    "logps/chosen": Metric("eval/logps/chosen", "max", "log-prob of chosen answers", _TOKENS),
    "logps/rejected": Metric("eval/logps/rejected", "min", "log-prob of rejected answers", _TOKENS),
    "log_odds": Metric("eval/log_odds", "max", "log-odds", _TOKENS),
    "rewards/margins": Metric("eval/rewards/margins", "max", "reward margin", _REWARD),
}
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
