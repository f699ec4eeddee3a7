"""The space of a sweep: which values its settings may take, and the points to try."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orpo_dist.base.types import UserError, noted, refuse
from orpo_dist.config import ORPOConfig, check_settings
from orpo_dist.config.names import explain_unknown
from orpo_dist.launch import presets

Settings = dict[str, Any]

ENGINE = "engine"  # a setting of the trial, beside those of its run
# Settings that the sweep decides for every trial.
OWNED = (
    "project_name", "overwrite", "resume_from_checkpoint", "trainer", "trainer_args",
    "trust_remote_code", "save_strategy", "save_steps",
)  # fmt: skip
DIGITS = 6  # significant ones of a drawn number, so that names and YAML stay readable


@dataclass(frozen=True)
class Choice:
    """One of ``values``; each of them in turn where ``grid``."""

    values: tuple[Any, ...]
    grid: bool = False

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.values)

    def settle(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class Range:
    """A number between low and high, both included.

    log: drawn evenly in its logarithm. step: a whole number of steps above low.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def draw(self, rng: random.Random) -> float:
        if self.log:
            return self.settle(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.settle(rng.uniform(self.low - self._half, self.high + self._half))

    @property
    def _half(self) -> float:
        return (self.step or 0) / 2  # so that the ends are drawn as often as what lies between

    def settle(self, value: float) -> float:
        """The nearest value of the range, rounded; whole numbers stay whole."""
        if self.step is not None:
            most = math.floor((self.high - self.low) / self.step + 1e-9)
            value = self.low + self.step * min(max(round((value - self.low) / self.step), 0), most)
        value = min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)
        return int(value) if self.whole else value

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return self.step is not None and self.step % 1 == 0 and self.low % 1 == 0


@dataclass(frozen=True)
class Parameter:
    """A setting and its values. when: values that other settings must have for it to count."""

    name: str
    domain: Choice | Range
    when: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def counts(self, settings: Mapping[str, Any]) -> bool:
        return all(settings.get(name) in values for name, values in self.when.items())


class Space:
    """The parameters of a sweep, those with conditions after what they depend on."""

    def __init__(self, content: Mapping[str, Any]):
        if not isinstance(content, Mapping):
            raise UserError("space: must be a mapping of settings to what they may be")
        found: list[str] = []
        parameters = []
        for name, values in content.items():
            with noted(found):
                parameters.append(_parameter(str(name), values))
        refuse(found)
        self.parameters = _ordered(parameters)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def names(self) -> list[str]:
        return [parameter.name for parameter in self.parameters]

    @property
    def walks_grid(self) -> bool:
        return any(isinstance(p.domain, Choice) and p.domain.grid for p in self)

    def settle(self, drawn: Mapping[str, Any], base: Mapping[str, Any]) -> Settings:
        """The drawn values that count, each as its setting takes it; the base has the others."""
        found: Settings = {}
        defaults = {name: field.default for name, field in ORPOConfig.model_fields.items()}
        for parameter in self.parameters:
            if parameter.name in drawn and parameter.counts({**defaults, **base, **found}):
                found[parameter.name] = parameter.domain.settle(drawn[parameter.name])
        return found

    def points(
        self, base: Mapping[str, Any], samples: int, seed: int, unique: bool = True
    ) -> list[Settings]:
        """Every point of the grid, ``samples`` times with new draws of what is random.

        unique: leave out points that are there already. The same seed gives the same points.
        """
        rng = random.Random(seed)  # noqa: S311 (nothing secret is drawn)
        grids = [p for p in self if isinstance(p.domain, Choice) and p.domain.grid]
        others = [p for p in self if p not in grids]
        found: list[Settings] = []
        for _ in range(samples):
            values = [parameter.domain.values for parameter in grids]  # type: ignore[union-attr]
            for combination in itertools.product(*values):
                drawn = {p.name: v for p, v in zip(grids, combination, strict=True)}
                drawn |= {p.name: p.domain.draw(rng) for p in others}
                point = self.settle(drawn, base)
                if not unique or point not in found:
                    found.append(point)
        return found

    def extremes(self) -> Iterator[Settings]:
        """Single settings at the ends of what they may be, to be checked before anything runs."""
        for parameter in self:
            domain = parameter.domain
            ends = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
            for value in ends:
                yield {parameter.name: domain.settle(value)}


def check_value(name: str, value: Any, where: str) -> Any:
    """The value as its setting takes it; ``UserError`` that begins with ``where``."""
    if name == ENGINE:
        return presets.find(str(value)).name
    return check_settings({name: value}, where)[name]


def _parameter(name: str, content: Any) -> Parameter:
    where = f"space.{name}"
    if name in OWNED:
        raise UserError(f"{where}: cannot be searched, the sweep itself decides it")
    known = [*ORPOConfig.model_fields, ENGINE]
    if name not in known:
        raise UserError(f"{where}: {explain_unknown(name, known)}")
    kinds = [key for key in content if key != "when"] if isinstance(content, dict) else []
    if len(kinds) != 1 or kinds[0] not in DOMAINS:
        raise UserError(
            f"{where}: needs one of {', '.join(DOMAINS)}, e.g. {name}: {{choice: [...]}}"
            + f" (got {content!r})"
        )
    domain = DOMAINS[kinds[0]](content[kinds[0]], f"{where}.{kinds[0]}")
    if isinstance(domain, Choice):
        values = tuple(check_value(name, value, where) for value in domain.values)
        domain = Choice(values, domain.grid)
    for value in (domain.low, domain.high) if isinstance(domain, Range) else ():
        check_value(name, domain.settle(value), where)
    return Parameter(name, domain, _conditions(content.get("when", {}), where))


def _conditions(content: Any, where: str) -> dict[str, tuple[Any, ...]]:
    if not isinstance(content, dict):
        raise UserError(f"{where}.when: must be a mapping of settings to values")
    return {
        str(name): tuple(
            check_value(str(name), value, f"{where}.when")
            for value in (values if isinstance(values, list) else [values])
        )
        for name, values in content.items()
    }


def _listed(content: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(content, list) or not content:
        raise UserError(f"{where}: must be a list of values (got {content!r})")
    repeated = [value for i, value in enumerate(content) if value in content[:i]]
    if repeated:
        raise UserError(f"{where}: holds {repeated[0]!r} twice; use repeats for more seeds")
    return tuple(content)


def _numbers(content: Any, where: str, names: str) -> list[float]:
    """As many numbers as ``names`` has words; PyYAML reads 1e-6 as text."""
    wanted = len(names.split())
    try:
        numbers = [float(value) for value in content]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != wanted or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where}: must be [{', '.join(names.split())}] (got {content!r})")
    if not numbers[0] < numbers[1]:
        raise UserError(f"{where}: low must be below high (got {content!r})")
    if wanted == 3 and numbers[2] <= 0:
        raise UserError(f"{where}: step must be above 0 (got {content!r})")
    return numbers


def _uniform(content: Any, where: str) -> Range:
    low, high = _numbers(content, where, "low high")
    return Range(low, high)


def _loguniform(content: Any, where: str) -> Range:
    low, high = _numbers(content, where, "low high")
    if low <= 0:
        raise UserError(f"{where}: low must be above 0 (got {content!r})")
    return Range(low, high, log=True)


def _quniform(content: Any, where: str) -> Range:
    low, high, step = _numbers(content, where, "low high step")
    return Range(low, high, step=step)


def _randint(content: Any, where: str) -> Range:
    low, high = _numbers(content, where, "low high")
    if low % 1 or high % 1:
        raise UserError(f"{where}: low and high must be whole numbers (got {content!r})")
    return Range(low, high, step=1)


DOMAINS: dict[str, Callable[[Any, str], Choice | Range]] = {
    "grid": lambda content, where: Choice(_listed(content, where), grid=True),
    "choice": lambda content, where: Choice(_listed(content, where)),
    "uniform": _uniform,
    "loguniform": _loguniform,
    "quniform": _quniform,
    "randint": _randint,
}


def _ordered(parameters: list[Parameter]) -> list[Parameter]:
    """Conditions after what they ask; ``UserError`` where they go in a circle."""
    found: list[Parameter] = []
    waiting = list(parameters)
    while waiting:
        open_names = {parameter.name for parameter in waiting}
        ready = [p for p in waiting if not open_names & (set(p.when) - {p.name})]
        if not ready or any(p.name in p.when for p in ready):
            raise UserError(f"space.{waiting[0].name}.when: depends on itself")
        found += ready
        waiting = [parameter for parameter in waiting if parameter not in ready]
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A setting's value for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)
