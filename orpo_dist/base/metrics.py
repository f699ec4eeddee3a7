"""The metrics of a run, once: from here the log, evaluations, sweeps, reports, cards and docs.

A name is that in ``metrics.jsonl``; evaluations have ``eval/`` in front, TRL's names stand beside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_PAIRS = ("valid_data_path", "valid_split")
_TOKENS = (*_PAIRS, "model", "chat_template", "max_completion_length")  # what a mean is taken over
_NLL = (*_TOKENS, "nll_scope")
_ALPHA = ("orpo_alpha", "orpo_alpha_schedule", "orpo_alpha_start", "orpo_alpha_warmup")
_REWARD = (*_TOKENS, *_ALPHA)


@dataclass(frozen=True)
class Metric:
    """One number that is logged.

    label, unit: for people. short: on a line of progress. form: how it is printed. better: ``max``,
    ``min`` or '' where neither is. depends_on: settings on which its scale depends, so that runs
    that differ in them cannot be ranked by it. meaning: for the docs. trl: TRL's name of it. low,
    high: its ends, which no interval may pass.
    """

    label: str
    unit: str
    form: str
    better: str
    meaning: str
    depends_on: tuple[str, ...] = ()
    short: str = ""
    trl: str = ""
    low: float = -math.inf
    high: float = math.inf

    def shown(self, value: float) -> str:
        """The number as it is printed."""
        return format(value, self.form)


NATS = "nats per token"

METRICS = {
    "loss/orpo": Metric(
        "ORPO loss", "nats", ".4f", "min", "the objective",
        (*_NLL, *_ALPHA, "loss_form"), "loss", "loss", low=0.0,
    ),
    "loss/sft": Metric(
        "SFT loss", NATS, ".4f", "min", "`L_SFT`, nats per token", _NLL, "sft", "nll_loss", low=0.0,
    ),
    "loss/odds_ratio": Metric(
        "odds-ratio loss", "nats", ".4f", "min", "`L_OR`, not multiplied by α",
        _TOKENS, "odds", "−log_odds_ratio", low=0.0,
    ),
    "rewards/accuracies": Metric(
        "preference accuracy", "share of pairs", ".3f", "max",
        "share of pairs with `logp_c > logp_r`, also at α = 0", _PAIRS, "accuracy", "the same",
        low=0.0, high=1.0,
    ),
    "logps/margins": Metric(
        "margin, nats per token", NATS, "+.3f", "max",
        "mean log-prob of the chosen less that of the rejected answer, free of α",
        _TOKENS, "margin",
    ),
    "log_odds": Metric(
        "log-odds", "", "+.3f", "max", "mean log-odds", _TOKENS, trl="log_odds_chosen"
    ),
    "logps/chosen": Metric(
        "log-prob of chosen answers", NATS, ".3f", "max", "mean log-prob per answer token",
        _TOKENS, trl="the same", high=0.0,
    ),
    "logps/rejected": Metric(
        "log-prob of rejected answers", NATS, ".3f", "min", "mean log-prob per answer token",
        _TOKENS, trl="the same", high=0.0,
    ),
    "rewards/chosen": Metric(
        "reward of chosen answers", "", ".3f", "", "α times the log-prob", _REWARD, trl="the same"
    ),
    "rewards/rejected": Metric(
        "reward of rejected answers", "", ".3f", "", "α times the log-prob", _REWARD,
        trl="the same",
    ),
    "rewards/margins": Metric(
        "reward margin", "", "+.3f", "max", "α times the margin", _REWARD, trl="the same"
    ),
    "loss/router": Metric(
        "router loss", "", ".4f", "",
        "load-balancing loss of the experts, not multiplied by its weight, where it is trained",
        trl="aux_loss",
    ),
    "grad_norm": Metric(
        "gradient norm", "", ".2f", "", "before clipping", short="grad", trl="the same"
    ),
    "learning_rate": Metric(
        "learning rate", "", ".1e", "", "of the last step", short="lr", trl="the same"
    ),
    "orpo_alpha": Metric("α", "", ".3g", "", "α in the last step of the line"),
    "progress": Metric("progress", "", ".2f", "", "share of the optimizer steps that are done"),
    "stage": Metric("stage", "", ".0f", "", "the stage of a staged run"),
    "seconds_per_step": Metric(
        "time of a step", "s", ".2f", "min",
        "over the steps since the last line, optimizer included, evaluation and saving left out",
        short="s/step",
    ),
    "pairs_per_second": Metric(
        "speed", "pairs/s", ".1f", "max", "of the same time, all ranks together"
    ),
    "tokens_per_second": Metric(
        "speed", "tokens/s", ".0f", "max",
        "of the same time, all ranks together; prompts count once", short="tokens/s",
    ),
    "padding_avoided": Metric(
        "padding avoided", "", ".0%", "max",
        "share of the tokens of the usual padded layout, prompts twice, that did not have to be "
        "computed",
    ),
    "mfu": Metric(
        "MFU", "", ".2f", "max",
        "useful arithmetic over the device's bf16 peak, on GPUs whose data sheet is known "
        "(`orpo_dist/engines/peaks.py`) and for models whose arithmetic is (no quantised weights; "
        "of experts those that a token is sent to)",
        short="mfu",
    ),
}  # fmt: skip

# Logged for every category as well, with its name behind a slash.
BY_CATEGORY = ("rewards/accuracies", "logps/margins", "loss/sft")


def docs_table() -> list[str]:
    """The rows of the table in docs/guide.md."""
    rows = [f"| `{name}` | {m.meaning} | {_code(m.trl)} |" for name, m in METRICS.items()]
    names = ", ".join(f"`{name}/NAME`" for name in (*BY_CATEGORY, "pairs"))
    return [*rows, f"| {names} | the same of one category, where there are 2 to 32 | |"]


def _code(name: str) -> str:
    if not name or name == "the same":
        return name
    return f"−`{name[1:]}`" if name.startswith("−") else f"`{name}`"
