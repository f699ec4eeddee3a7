"""The next round of a sweep: a finer space around the best point so far."""

from __future__ import annotations

import math
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.sweeps.found.plots import STEEP
from orpo_dist.sweeps.found.results import Results
from orpo_dist.sweeps.protocol import round_folder
from orpo_dist.sweeps.searched.config import SweepConfig
from orpo_dist.sweeps.searched.files import load_sweep
from orpo_dist.sweeps.searched.space import DIGITS, Choice, Parameter, Range, is_number

SHRINK = 4  # a range becomes this much narrower


def refined(results: Results, number: int) -> SweepConfig:
    """The sweep of a round, from 2 on. Raises ``UserError`` where nothing has finished yet.

    Every round looks around the best point of all before it. A grid becomes four points, two on
    each side between the best value and its neighbours; at its end it reaches as far beyond. A
    range becomes a quarter as wide around the best value, in the round after that a sixteenth.
    Seeds and what is not a number stay at their best value.
    """
    best = results.best
    if best is None:
        raise UserError(f"round {number}: no trial has finished, so there is no best to go on from")
    space = {}
    for parameter in results.sweep.search_space:
        if parameter.name in best.settings:
            space[parameter.name] = _finer(parameter, results, SHRINK ** (number - 1))
    content = results.sweep.model_dump()
    folder = round_folder(results.project, number)
    return load_sweep({**content, "space": space}, {"project_name": str(folder)})


def refuse_unrefinable(sweep: SweepConfig) -> None:
    """``UserError`` where no setting has anything between the values of the first round."""
    for parameter in sweep.search_space:
        domain = parameter.domain
        if parameter.name != "seed" and (
            isinstance(domain, Range) or sum(map(is_number, domain.values)) > 1
        ):
            return
    raise UserError("--rounds: no setting in the space is a number, so there is nothing finer")


def _finer(parameter: Parameter, results: Results, shrink: int) -> dict[str, Any]:
    assert results.best is not None
    domain, best = parameter.domain, results.best.settings[parameter.name]
    kind = "grid" if isinstance(domain, Choice) and domain.grid else "choice"
    if parameter.name == "seed":
        return {kind: [best]}
    if isinstance(domain, Range):
        return _narrower(domain, best, shrink)
    numbers = results.numbers(parameter.name)
    if len(numbers) < 2 or best not in numbers:
        return {kind: [best]}
    whole = all(isinstance(value, int) for value in numbers)
    finer = _between(best, numbers, whole)
    return {kind: _allowed(parameter.name, finer, results) or [best]}


def _narrower(domain: Range, best: float, shrink: int) -> dict[str, Any]:
    if domain.log:
        reach = (domain.high / domain.low) ** (0.5 / shrink)
        low, high = max(domain.low, best / reach), min(domain.high, best * reach)
        return {"loguniform": [_rounded(low), _rounded(high)]}
    reach = (domain.high - domain.low) / (2 * shrink)
    low, high = max(domain.low, best - reach), min(domain.high, best + reach)
    if domain.step is None:
        return {"uniform": [_rounded(low), _rounded(high)]}
    low, high = domain.settle(low), domain.settle(high)
    return {"choice": [low]} if low == high else {"quniform": [low, high, domain.step]}


def _between(best: float, numbers: list[float], whole: bool) -> list[float]:
    """Two values on each side of ``best``; evenly in the logarithm where ``numbers`` are."""
    log = numbers[0] > 0 and numbers[-1] / numbers[0] >= STEEP
    scale, back = (math.log, math.exp) if log else (float, float)
    at = numbers.index(best)
    below = scale(best) - scale(numbers[at - 1]) if at > 0 else None
    above = scale(numbers[at + 1]) - scale(best) if at + 1 < len(numbers) else None
    steps = (below or above or 0.0, above or below or 0.0)
    shares = ((-2 / 3, steps[0]), (-1 / 3, steps[0]), (1 / 3, steps[1]), (2 / 3, steps[1]))
    found = [_rounded(back(scale(best) + share * step)) for share, step in shares]
    if whole:
        found = [round(value) for value in found]
    return [value for value in dict.fromkeys(found) if value not in numbers]


def _allowed(name: str, values: list[float], results: Results) -> list[float]:
    """Those that a run takes beside the best point's other settings."""
    assert results.best is not None
    sweep, kept = results.sweep, []
    for value in values:
        try:
            sweep.run_config({**results.best.settings, name: value}, "trial")
        except UserError:
            continue
        kept.append(value)
    return kept


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
