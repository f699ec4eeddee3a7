"""Sizes that a config names, whatever kind of config it is."""

from __future__ import annotations

from typing import Any


def number_of(config: Any, name: str) -> int | None:
    """A size by a config; None where it has none of that name, or one for every layer."""
    try:
        found = getattr(config, name)
    except (AttributeError, RuntimeError, ValueError):  # of transformers, by version and config
        return None
    return found if isinstance(found, int) else None
