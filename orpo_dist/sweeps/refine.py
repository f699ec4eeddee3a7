"""The next stage of a sweep: a finer space around the best point so far."""

from __future__ import annotations

import math
from typing import Any

from orpo_dist.config import check_settings
from orpo_dist.sweeps.config import SweepConfig
from orpo_dist.sweeps.files import load_sweep
from orpo_dist.sweeps.plots import STEEP
from orpo_dist.sweeps.results import Results
from orpo_dist.sweeps.space import DIGITS, Parameter, Range
from orpo_dist.types import UserError

SHRINK = 4  # a range becomes this much narrower


def refined(results: Results, stage: int) -> SweepConfig:
    """The sweep of the next stage. Raises ``UserError`` where nothing has finished yet.

    A grid becomes four points, two on each side between the best value and its neighbours; at the
    end of a grid it reaches as far beyond. A range becomes a quarter as wide around the best value.
    What is not a number stays at its best value.
    """
    best = results.best
    if best is None:
        raise UserError(f"stage {stage}: no trial has finished, so there is no best to go on from")
    space = {}
    for parameter in results.sweep.search_space:
        if parameter.name in best.settings:
            space[parameter.name] = _finer(parameter, best.settings[parameter.name], results)
    content = results.sweep.model_dump()
    folder = results.project / f"stage-{stage}"
    return load_sweep({**content, "space": space}, {"project_name": str(folder)})


def _finer(parameter: Parameter, best: Any, results: Results) -> dict[str, Any]:
    domain = parameter.domain
    if isinstance(domain, Range):
        return _narrower(domain, best)
    tried = {p.settings[parameter.name] for p in results.points if parameter.name in p.settings}
    numbers = sorted(v for v in tried if isinstance(v, (int, float)) and not isinstance(v, bool))
    kind = "grid" if domain.grid else "choice"
    if len(numbers) < 2 or best not in numbers:
        return {kind: [best]}
    whole = all(isinstance(value, int) for value in numbers)
    finer = _between(best, numbers, whole)
    return {kind: _allowed(parameter.name, finer) or [best]}


def _narrower(domain: Range, best: float) -> dict[str, Any]:
    if domain.log:
        reach = (domain.high / domain.low) ** (0.5 / SHRINK)
        low, high = max(domain.low, best / reach), min(domain.high, best * reach)
        return {"loguniform": [_rounded(low), _rounded(high)]}
    reach = (domain.high - domain.low) / (2 * SHRINK)
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


def _allowed(name: str, values: list[float]) -> list[float]:
    """Those that the setting takes: beyond the end of a grid, some may not be."""
    kept = []
    for value in values:
        try:
            check_settings({name: value})
        except UserError:
            continue
        kept.append(value)
    return kept


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
