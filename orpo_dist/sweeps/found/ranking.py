"""Trials in the order of what they have reached."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from orpo_dist.sweeps.protocol import Trial


def rank(trials: Iterable[Trial], metric: str, mode: str) -> list[Trial]:
    """Best first; those without the metric last."""
    sign = -1.0 if mode == "max" else 1.0

    def key(trial: Trial) -> tuple[bool, float]:
        value = trial.metrics.get(metric, math.nan)
        return (True, 0.0) if math.isnan(value) else (False, sign * value)

    return sorted(trials, key=key)


def rank_by_point(trials: Iterable[Trial], metric: str, mode: str) -> list[Trial]:
    """The trials of the best point first, as results rank points, the best of them first."""
    ranked = rank(trials, metric, mode)
    seeds: dict[str, list[float]] = {}
    for trial in ranked:
        seeds.setdefault(_point(trial), []).append(trial.metrics.get(metric, math.nan))
    sign = -1.0 if mode == "max" else 1.0

    def mean(trial: Trial) -> tuple[bool, float]:
        values = [v for v in seeds[_point(trial)] if not math.isnan(v)]
        return (False, sign * sum(values) / len(values)) if values else (True, 0.0)

    return sorted(ranked, key=mean)


def _point(trial: Trial) -> str:
    settings = {name: value for name, value in trial.settings.items() if name != "seed"}
    return json.dumps(settings, sort_keys=True, default=str)
