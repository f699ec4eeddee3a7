"""The register of private names that are reached for, and the one check that they are there."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal, TypeVar, get_args

from orpo_dist.base.types import UserError

T = TypeVar("T")

Group = Literal[
    "accelerate", "bitsandbytes", "datasets", "deepspeed", "hf_models", "hf_trainer", "kernels",
    "peft", "ray", "torch",
]  # fmt: skip

# What constraints.txt holds: the versions that every name here was seen in.
TESTED = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "datasets": "5.2.0",
    "deepspeed": "0.19.8",
    "peft": "0.21.2",
    "ray": "2.60.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}

NAME = re.compile(
    r"(?P<module>[\w.]+):(?P<path>[\w.]+)"
    r"(\((?P<takes>[\w, ]*)\)|@(?P<word>\w+)|=(?P<value>[\w.]+))?"
)


@dataclass(frozen=True)
class Shim:
    """What one shim reaches for.

    names: ``module:Thing.part`` has to exist; ``module:Class.method(a, b)`` to have exactly these
    parameters beside ``self``; the code of ``module:Thing@word`` to speak of an attribute or a
    keyword, such as one that it sets on the objects it makes; ``module:NAME=value`` to be that.
    because: why nothing public will do. upstream: where it stands there, and in which version it
    was read. until: what has to happen there for the shim to go.
    """

    what: str
    names: tuple[str, ...]
    because: str
    upstream: str
    until: str


_SHIMS: dict[str, list[Shim]] = {}


def reaches_for(*names: str, because: str, upstream: str, until: str) -> Callable[[T], T]:
    """Enter a function or a method of this room into the register; see ``Shim``."""

    def enter(shim: Any) -> Any:
        assert all(NAME.fullmatch(name) for name in names), names
        entry = Shim(shim.__qualname__, names, because, upstream, until)
        _SHIMS.setdefault(shim.__module__.rpartition(".")[2], []).append(entry)
        return shim

    return enter


def shims(group: Group) -> list[Shim]:
    """The register's entries of a module of this room."""
    importlib.import_module(f"orpo_dist.upstream.{group}")
    return _SHIMS[group]


def table() -> list[str]:
    """The whole register as lines of Markdown, for the documentation."""
    lines = ["| shim | because | upstream | until |", "|---|---|---|---|"]
    for group in get_args(Group):
        for shim in shims(group):
            cells = shim.because, shim.upstream, shim.until
            lines.append(f"| `{group}.{shim.what.rpartition('.')[2]}` | {' | '.join(cells)} |")
    return lines


def check(*groups: Group) -> None:
    """``UserError`` where a library is not as the shims of some modules of this room need it.

    To be called before they are used; imports the libraries, and looks once a process: what a shim
    has put in a place of its own is not looked at again.
    """
    for group in groups:
        _check(group)


@functools.cache
def _check(group: Group) -> None:
    missing = {name: shim for shim in shims(group) for name in shim.names if not is_there(name)}
    if missing:
        raise UserError(_sentence(missing))


def is_there(name: str) -> bool:
    """Whether a name in the form of ``Shim.names`` is as it says."""
    found = NAME.fullmatch(name)
    assert found is not None
    try:
        thing: Any = importlib.import_module(found["module"])
        for part in found["path"].split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError):
        return False
    if found["takes"] is not None:
        wanted = found["takes"].replace(" ", "").split(",") if found["takes"] else []
        return [p for p in inspect.signature(thing).parameters if p != "self"] == wanted
    if found["value"] is not None:
        return bool(thing == found["value"])
    return found["word"] is None or found["word"] in set(_words(thing))


def _words(thing: Any) -> Iterator[str]:
    """The names and strings in the code of a function, or of the methods of a class."""
    if not inspect.isclass(thing):
        yield from _words_of(inspect.unwrap(thing).__code__)
        return
    for kind in thing.__mro__:
        for value in vars(kind).values():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if inspect.isfunction(inspect.unwrap(function)):
                yield from _words_of(inspect.unwrap(function).__code__)


def _words_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _words_of(value)
        elif isinstance(value, str):
            yield value
        elif isinstance(value, tuple):
            yield from (part for part in value if isinstance(part, str))


def _sentence(missing: dict[str, Shim]) -> str:
    library = next(iter(missing)).partition(":")[0].partition(".")[0]
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        version = "(version unknown)"
    tested, shim = TESTED[library], next(iter(missing.values()))
    names = ", ".join(missing)
    return (
        f"{library} {version}: is without {names} as orpo_dist knows it, and is reached for "
        f"there because {shim.because}; install the version that this was tested with: pip "
        f"install '{library}=={tested}'"
    )
