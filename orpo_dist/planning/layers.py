"""Which layers of a model are alike, and how few of them have to be run to know them all.

Layers that differ come in patterns: five with a window and one without, three dense ones before
fifty of experts. Two shallow models that end with a whole pattern, and differ by one, say what
every further pattern adds.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

SHORTEST = 2  # layers of a shallow model, as what is kept grows evenly from then on
COUNTERS = re.compile(r"layer|index|idx|number")  # attributes that say which layer one is


def depths(kinds: Sequence[Hashable]) -> tuple[int, int] | None:
    """Numbers of layers of two shallow models, one pattern apart; None: run the whole model.

    kinds: of each layer. The pattern with which the layers end is found where it makes the larger
    model smallest.
    """
    found = []
    for length in range(1, len(kinds) // 2 + 1):
        first = _first_of(kinds, length)
        more = first + 2 * length
        more += length * max(0, -(-(SHORTEST + length - more) // length))
        found.append((more, length))
    more, length = min(found, default=(len(kinds), 1))
    return (more - length, more) if more < len(kinds) else None


def _first_of(kinds: Sequence[Hashable], length: int) -> int:
    """From which layer on every layer is as the one ``length`` layers before it, up to the end."""
    first = len(kinds) - length
    while first > 0 and kinds[first - 1] == kinds[first - 1 + length]:
        first -= 1
    return first


def kinds_of(blocks: Sequence[Any], config: Any) -> list[Hashable]:
    """What each layer is: its modules, their sizes and settings, what the config has for it.

    config: of the text part. blocks: all layers in order; others than these are left aside.
    """
    listed = [
        [repr(x) for x in value]
        for value in vars(config).values()
        if isinstance(value, list | tuple) and len(value) == len(blocks)
    ]
    shared = vars(config).get("num_kv_shared_layers") or 0
    return [
        (
            tuple(_module_kind(module) for module in block.modules()),
            tuple(values[at] for values in listed),
            at >= len(blocks) - shared,
        )
        for at, block in enumerate(blocks)
    ]


def _module_kind(module: Any) -> Hashable:
    sizes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False))
    settings = tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, int | float | str | type(None)) and not COUNTERS.search(name)
    )
    return type(module).__name__, sizes, settings


def keep_layers(config: Any, layers: int) -> None:
    """Make a config one of the model's first layers alone. config: of the text part."""
    before, config.num_hidden_layers = config.num_hidden_layers, layers
    for name, value in list(vars(config).items()):  # what is said layer by layer
        if isinstance(value, list) and len(value) == before:
            setattr(config, name, value[:layers])
    if shared := vars(config).get("num_kv_shared_layers"):  # the last ones, of Gemma 3n and 4
        config.num_kv_shared_layers = max(0, layers - (before - shared))
