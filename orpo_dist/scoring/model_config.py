"""Reading configs of models, which say the same in many ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def parts(config: Any) -> Iterator[Any]:
    """The config and those inside it."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        if (inner := getattr(config, name, None)) is not None:
            yield from parts(inner)


def number_of(config: Any, name: str) -> int | None:
    """A size by a config; None where it has none of that name, or one for every layer."""
    try:
        found = getattr(config, name)
    except (AttributeError, RuntimeError, ValueError):  # of transformers, by version and config
        return None
    return found if isinstance(found, int) else None
