"""Members of an ensemble in memory; adapters of one base share its weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.ensembles.listing import Listed
from orpo_dist.models.model import load_tokenizer, resolve_precision
from orpo_dist.models.trained import TrainedModel, loading_config, open_model, run_configs

logger = logging.getLogger("orpo_dist")


@dataclass(frozen=True)
class Member:
    """One model of an ensemble. weight: its share; those of an ensemble sum to 1.

    adapter: its name in a model that holds the adapters of several members.
    """

    name: str
    handle: TrainedModel
    weight: float
    adapter: str | None = None

    def ready(self) -> TrainedModel:
        """The member's handle, with its own adapter switched on."""
        model = self.handle.model
        if self.adapter is not None and model.active_adapter != self.adapter:
            model.set_adapter(self.adapter, inference_mode=True)
        return self.handle


def load_members(
    listed: Sequence[Listed],
    settings: Mapping[str, Any] | None = None,
    full_precision: bool = False,
) -> list[Member]:
    """Load every member; a base that several adapters share in one precision is loaded once.

    settings: of ``ORPOConfig``, over those of every member's own run. full_precision: as in
    ``load``; a base among its fine-tunes is loaded as they are.
    """
    total = sum(member.weight for member in listed)
    bases: dict[tuple[Any, ...], Any] = {}
    members: list[Member] = []
    configs = run_configs([entry.path for entry in listed])
    for number, (entry, own) in enumerate(zip(listed, configs, strict=True)):
        config = loading_config(entry.path, own.replace(**(settings or {})), full_precision)
        base, weight = _base_of(entry.path), entry.weight / total
        key = (base, resolve_precision(config), config.quantization)
        if base is None:
            members.append(Member(entry.path, open_model(entry.path, config), weight))
        elif key not in bases:
            handle = open_model(entry.path, config)
            bases[key] = handle.model
            members.append(Member(entry.path, handle, weight, handle.model.active_adapter))
        else:
            adapter = f"member{number}"
            members.append(_another_adapter(entry.path, config, bases[key], adapter, weight))
    logger.info(_truth(members))
    return members


def _base_of(path: str) -> str | None:
    """The base of an adapter folder, None for a whole model."""
    file = Path(path).expanduser() / "adapter_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return f"{settings['base_model_name_or_path']}@{settings.get('revision')}"
    except (OSError, ValueError, KeyError, TypeError):
        return None  # loading says what is wrong with it, if anything is


def _another_adapter(
    path: str, config: ORPOConfig, model: Any, adapter: str, weight: float
) -> Member:
    tokenizer = load_tokenizer(path, config)
    try:
        model.load_adapter(str(Path(path).expanduser().resolve()), adapter_name=adapter)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"adapter {path}: cannot be loaded ({reason})") from error
    model.eval()
    return Member(path, TrainedModel(model, tokenizer, config, Path(path)), weight, adapter)


def _truth(members: Sequence[Member]) -> str:
    """How many weights are in memory, for how many members."""
    models = {id(member.handle.model): member.handle.model for member in members}
    size = sum(p.numel() * p.element_size() for m in models.values() for p in m.parameters())
    return f"{len(members)} members in {len(models)} models, {size / 2**30:.3g} GiB of weights"


def refuse_different_vocabularies(members: Sequence[Member]) -> None:
    """``UserError`` where token i is not the same word for all members."""
    first = members[0].handle
    for member in members[1:]:
        other = member.handle
        if not same_words(first.tokenizer, other.tokenizer) or _logits_of(other) != _logits_of(
            first
        ):
            raise UserError(
                f"average: {member.name} has another vocabulary than {members[0].name}, so their "
                "tokens cannot be averaged; use vote or best_of"
            )
        if template_of(other.tokenizer, other.config) != template_of(first.tokenizer, first.config):
            logger.warning(
                "average: %s has another chat template than %s, whose template is used",
                member.name,
                members[0].name,
            )


def same_words(first: Any, second: Any) -> bool:
    """Whether token i is the same word for two tokenizers."""
    return bool(first.get_vocab() == second.get_vocab())


def template_of(tokenizer: Any, config: ORPOConfig) -> str | None:
    """The chat template that a run's prompts are written by."""
    return config.chat_template or tokenizer.chat_template


def _logits_of(handle: TrainedModel) -> int:
    return int(handle.model.config.get_text_config().vocab_size)
