"""Models with eyes or ears: their language part trains from text, the rest stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from torch import nn

from orpo_dist.base.console import count
from orpo_dist.models.kinds import SENSES

logger = logging.getLogger("orpo_dist")


def freeze_towers(core: Any) -> int:
    """Freeze what no text goes through: towers for images and sound, and what joins them on.

    Returns how many parameters these are. They are saved as they were loaded, with all others.
    Without this they would wait for gradients that never come, which engines do not bear, and count
    as trained.
    """
    frozen = list(_towers(core))
    for parameter in frozen:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in frozen)


def say_frozen(core: Any) -> None:
    """``freeze_towers``, with a line where there are any."""
    if frozen := freeze_towers(core):
        logger.info(
            "model %s: its language part trains; %s parameters for images or sound stay as they "
            "are, and are saved with it", type(core).__name__, count(frozen),
        )  # fmt: skip


def _towers(core: Any) -> Iterator[nn.Parameter]:
    senses = [getattr(core.config, name, None) for name in SENSES]
    kinds = tuple(type(sense) for sense in senses if sense is not None)
    if not kinds:
        return
    language = (core.get_decoder(), core.get_input_embeddings(), core.get_output_embeddings())
    inside = {id(p) for part in language if part is not None for p in part.parameters()}
    towers = {
        id(parameter)
        for module in core.modules()
        if isinstance(getattr(module, "config", None), kinds) and module is not core
        for parameter in module.parameters()
    }
    for parameter in core.parameters():
        if id(parameter) not in inside or id(parameter) in towers:
            yield parameter
