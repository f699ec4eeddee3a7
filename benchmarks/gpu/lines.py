"""One line of the table, and how a case becomes one whatever happens in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

# What the checks need only in part; without it their lines are skipped.
OPTIONAL = (
    "bitsandbytes", "datasets", "liger_kernel", "matplotlib", "peft", "psutil", "pyarrow",
    "pydantic", "scipy", "tensorboard", "trl",
)  # fmt: skip


class Found(NamedTuple):
    """What a case has found. figure: as the table shows it; values: the same in numbers."""

    right: bool
    figure: str
    values: dict[str, Any]


class Skip(Exception):
    """Raised by a case that has no meaning here, with the reason."""


@dataclass(frozen=True)
class Options:
    """device: cuda or cpu. tiny: shapes that try the checks out and say nothing about speed."""

    device: str
    tiny: bool


Case = Callable[[], Found]


@dataclass(frozen=True)
class Line:
    """status: PASS, FAIL or SKIP. seconds: that the case took."""

    check: str
    case: str
    status: str
    figure: str
    values: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def line_of(check: str, name: str, case: Case) -> Line:
    """Run a case; its failure is a line like any other."""
    began = time.perf_counter()
    values: dict[str, Any] = {}
    try:
        right, figure, values = case()
        status = "PASS" if right else "FAIL"
    except Skip as reason:
        status, figure = "SKIP", str(reason)
    except ModuleNotFoundError as error:
        absent = str(error.name).partition(".")[0]
        status = "SKIP" if absent in OPTIONAL else "FAIL"
        figure = f"absent: {absent}"
    except Exception as error:
        figure = f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]
        status = "FAIL"
        if type(error).__name__ == "OutOfMemoryError":
            status, figure = "SKIP", "does not fit"
    return Line(check, name, status, figure, values, round(time.perf_counter() - began, 2))


def table(lines: list[Line]) -> str:
    widths = [max(len(getattr(line, name)) for line in lines) for name in ("check", "case")]
    return "\n".join(
        f"{line.status}  {line.check:<{widths[0]}}  {line.case:<{widths[1]}}  {line.figure}"
        for line in lines
    )
