"""Alpha over time: the weight of the odds-ratio term as a function of a run's progress.

Progress is optimizer steps done / optimizer steps in all: 0 in the first step, 1 when the run is
over. Nothing else goes in, so that a resumed run needs no state to find its alpha again.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orpo_dist.base.types import UserError

if TYPE_CHECKING:
    from orpo_dist.config import ORPOConfig

AlphaSchedule = Callable[[float], float]
Points = list[tuple[float, float]]

CONSTANT = "constant"
# How far from the start (0) to orpo_alpha (1), by progress; ``warmup`` has a length of its own.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}
NAMES = (CONSTANT, *SHAPES, "warmup", "ramp")
FORMS = (
    f"{', '.join(NAMES)}, points as progress:alpha (0:0.1,0.5:1), or a Python function "
    "(module:function)"
)
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def alpha_schedule(
    kind: str, alpha: float, start: float = 0.0, warmup: float = 0.1, most: float = math.inf
) -> AlphaSchedule:
    """Alpha by progress (0 to 1).

    kind: one of ``FORMS``. alpha: where the named shapes end; start: where ``linear``, ``cosine``
    and ``warmup`` begin; warmup: the share of the run that ``warmup`` takes. ``ramp`` is
    ``alpha · min(1, 2 · progress)``. Points and functions give alpha itself.
    most: the largest value that a function may return. Raises ``UserError``.
    """
    check_kind(kind)
    if kind == CONSTANT:
        return lambda progress: alpha
    if kind == "ramp":
        return lambda progress: alpha * min(1.0, 2 * progress)
    if kind == "warmup":
        return lambda progress: (
            alpha if progress >= warmup else start + (alpha - start) * progress / warmup
        )
    if kind in SHAPES:
        shape = SHAPES[kind]
        return lambda progress: start + (alpha - start) * shape(progress)
    if FUNCTION.fullmatch(kind):
        return _checked(kind, most)
    points = parse_points(kind)
    return lambda progress: _between(points, progress)


def schedule_of(config: ORPOConfig) -> AlphaSchedule:
    """The schedule that a config asks for."""
    return alpha_schedule(
        config.orpo_alpha_schedule,
        config.orpo_alpha,
        config.orpo_alpha_start,
        config.orpo_alpha_warmup,
        most=1.0 if config.loss_form == "convex" else math.inf,
    )


def check_kind(kind: str) -> None:
    """``UserError`` if ``kind`` is no schedule; a function is not looked for yet."""
    if kind not in NAMES and not FUNCTION.fullmatch(kind):
        parse_points(kind)


def values(kind: str, alpha: float, start: float) -> list[float]:
    """The values that a schedule's extremes are among; none for a function, which nobody asked."""
    if FUNCTION.fullmatch(kind):
        return []
    if kind not in NAMES:
        return [value for _, value in parse_points(kind)]
    return [alpha] if kind in (CONSTANT, "ramp") else [start, alpha]


def parse_points(text: str) -> Points:
    """``"0:0.1,0.5:1"`` -> ``[(0, 0.1), (0.5, 1)]``; ``UserError`` where that is not what it is."""
    try:
        points = [
            (float(at), float(value))
            for at, value in (point.split(":") for point in text.split(","))
        ]
    except ValueError as error:
        raise UserError(f"'{text}' is not a schedule: use {FORMS}") from error
    places = [at for at, _ in points]
    if len(points) < 2 or places != sorted(set(places)) or not 0 <= places[0] < places[-1] <= 1:
        raise UserError(f"points '{text}': need two or more, at rising progress between 0 and 1")
    if not all(math.isfinite(value) and value >= 0 for _, value in points):
        raise UserError(f"points '{text}': alpha must be 0 or more")
    return points


def _between(points: Points, progress: float) -> float:
    """Straight lines between the points; the first and the last value hold outside them."""
    after = bisect_right(points, progress, key=lambda point: point[0])
    if after == 0 or after == len(points):
        return points[max(0, after - 1)][1]
    (left, low), (right, high) = points[after - 1], points[after]
    return low + (high - low) * (progress - left) / (right - left)


def _checked(kind: str, most: float) -> AlphaSchedule:
    function = _import(kind)

    def alpha(progress: float) -> float:
        try:
            value = float(function(progress))
        except Exception as error:  # whatever the user's function raises
            raise UserError(
                f"orpo_alpha_schedule {kind}: fails at progress {progress:g} "
                f"({type(error).__name__}: {error})"
            ) from error
        if not 0 <= value <= most or not math.isfinite(value):
            raise UserError(
                f"orpo_alpha_schedule {kind}: gives {value:g} at progress {progress:g}; alpha must "
                f"lie between 0 and {most:g}"
            )
        return value

    for tenth in range(11):  # mistakes are told before hours of training
        alpha(tenth / 10)
    return alpha


def _import(kind: str) -> Callable[[float], float]:
    """The function that ``module:function`` names, also from a file in the current folder."""
    module, _, name = kind.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # an import runs the user's module
        raise UserError(
            f"orpo_alpha_schedule {kind}: cannot be imported ({type(error).__name__}: {error})"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise UserError(f"orpo_alpha_schedule {kind}: is not a function of progress")
    return function
