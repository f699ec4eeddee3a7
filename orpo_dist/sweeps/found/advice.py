"""What follows from a sweep, in sentences."""

from __future__ import annotations

from collections import Counter

from orpo_dist.sweeps.found.results import Estimate, Point, Results
from orpo_dist.sweeps.protocol import out_of_time
from orpo_dist.sweeps.searched.metrics import METRICS
from orpo_dist.sweeps.searched.space import Choice, shown


def advise(results: Results) -> list[str]:
    """Sentences, the most important first."""
    best = results.best
    if best is None:
        return ["No trial has finished, so nothing can be recommended.", *_endings(results)]
    found = [_take(results, best)]
    found += _against_sft(results, best)
    found += _as_good(results, best)
    found += _edges(results, best)
    found += _noise(results, best)
    return found + _endings(results)


def spoken(metric: str, estimate: Estimate) -> str:
    """``preference accuracy 0.713 (95 % 0.66 to 0.76)``"""
    text = f"{METRICS[metric].label} {_number(estimate.mean)}"
    if estimate.kind == "none":
        return text
    return f"{text} (95 % {_number(estimate.low)} to {_number(estimate.high)})"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _take(results: Results, best: Point) -> str:
    names = dict.fromkeys([results.metric, "accuracy", "perplexity"])
    estimates = [(name, best.estimate(name)) for name in names]
    said = ", ".join(spoken(name, e) for name, e in estimates if e is not None)
    return f"Take {best.label or 'the base settings'}: {said}."


def _against_sft(results: Results, best: Point) -> list[str]:
    """What preference costs in language quality: the best beside alpha 0, all else equal."""
    alpha = best.settings.get("orpo_alpha")
    if not alpha:
        return []
    plain = {**best.settings, "orpo_alpha": 0.0}
    same = [p for p in results.points if p.settings == plain and p.finished]
    pairs = [(best.estimate(n), same[0].estimate(n)) for n in ("accuracy", "perplexity") if same]
    if len(pairs) < 2 or any(e is None for pair in pairs for e in pair):
        return []
    (accuracy, before), (perplexity, quality) = pairs
    assert accuracy and before and perplexity and quality
    change = perplexity.mean / quality.mean - 1
    gain = accuracy.mean - before.mean
    sure = accuracy.low > before.high or accuracy.high < before.low
    return [
        f"Beside alpha 0 (plain fine-tuning): accuracy {gain:+.3f}"
        + ("" if sure else ", which is within the intervals")
        + f", perplexity {change:+.1%}; "
        + (
            "that is what it costs in language quality."
            if change > 0
            else "it costs nothing there."
        )
    ]


def _as_good(results: Results, best: Point) -> list[str]:
    """Points that cannot be told from the best; the one that speaks best."""
    top = best.estimate(results.metric)
    if top is None or top.kind == "none":
        return []
    others = []
    for point in results.ranked[1:]:
        estimate = point.estimate(results.metric)
        if estimate is not None and estimate.low <= top.high and estimate.high >= top.low:
            others.append(point)
    if not others:
        return []
    said = [f"{len(others)} other point(s) cannot be told from it by these intervals."]
    quality = best.estimate("perplexity")
    known = [(e.mean, p) for p in others if (e := p.estimate("perplexity")) is not None]
    if quality is not None and known:
        lowest, point = min(known, key=lambda pair: pair[0])
        if lowest < quality.mean:
            said.append(
                f"Of those, {point.label} has the lowest perplexity, {_number(lowest)}: take it if "
                "language quality matters more to you."
            )
    return said


def _edges(results: Results, best: Point) -> list[str]:
    """Settings whose best value is the outermost that was tried."""
    said = []
    for parameter in results.sweep.search_space:
        if parameter.name == "seed":  # no seed is better than another
            continue
        value = best.settings.get(parameter.name)
        numbers = results.numbers(parameter.name)
        if len(numbers) < 3 or value not in (min(numbers), max(numbers)):
            continue
        lowest = 0 if parameter.name in ("orpo_alpha", "warmup_ratio", "weight_decay") else None
        if value == lowest:
            continue
        word = "grid" if isinstance(parameter.domain, Choice) else "range"
        end = "lower" if value == min(numbers) else "upper"
        said.append(
            f"The best {parameter.name}, {shown(value)}, is the {end} end of what was tried: the "
            f"optimum may lie outside, so widen the {word}."
        )
    return said


def _noise(results: Results, best: Point) -> list[str]:
    if len(best.finished) > 2:
        return []
    if len(best.finished) == 2:
        return [
            "There are two seeds per point, too few to say how much another one would change: the "
            "intervals are wide. Set repeats to 3 or more."
        ]
    pairs = f" of {best.pairs} pairs" if best.pairs else ""
    return [
        f"There is one seed per point: the interval says how far the held-out data{pairs} can be "
        "trusted, not how much another seed would change. Set repeats to 3 or more to know that."
    ]


def _endings(results: Results) -> list[str]:
    counts = Counter(trial.status for trial in results.trials)
    said = []
    if counts["stopped"]:
        said.append(
            f"{counts['stopped']} of {len(results.trials)} trials were stopped early; they are not "
            "ranked."
        )
    if counts["failed"]:
        reasons = Counter(t.why for t in results.trials if t.status == "failed")
        named = "; ".join(f"{number} × {why}" for why, number in reasons.most_common(3))
        said.append(f"{counts['failed']} of {len(results.trials)} trials failed: {named}.")
    waiting = counts["interrupted"] + counts["running"] + counts["waiting"] + results.not_started
    if waiting:
        total, budget = len(results.trials) + results.not_started, results.sweep.time_budget
        never = f" ({results.not_started} have not started)" if results.not_started else ""
        more = "" if budget is None else f"; where its {out_of_time(budget)} is over, with more"
        said.append(f"{waiting} of {total} trials are not over{never}: go on with --resume{more}.")
    return said
