"""Who answers: a model, and a fine-tune's base beside it without loading what they share twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from orpo_dist.base.types import UserError
from orpo_dist.generation.prompts import Prompt
from orpo_dist.models.adapters import is_adapter
from orpo_dist.models.model import locate
from orpo_dist.models.trained import TrainedModel, load, loaded_like, run_config, run_configs


@dataclass(frozen=True)
class Speaker:
    """A model with the name it is shown under. within: entered while it answers."""

    name: str
    handle: TrainedModel
    within: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def answer(self, prompt: Any, **options: Any) -> Any:
        """``TrainedModel.generate``."""
        with self.within():
            return self.handle.generate(prompt, **options)


def speakers(path: str, beside: str | None = None, full_precision: bool = False) -> list[Speaker]:
    """The model at ``path``, after the one that it shall stand beside.

    beside: a model, or "base" for the one that it was fine-tuned from; the base of an adapter is
    the same model with the adapter switched off. full_precision: as in ``load``; a base is loaded
    as its fine-tune. Raises ``UserError`` if both are one model.
    """
    if beside == path or (beside not in (None, "base") and locate(beside) == locate(path)):
        raise UserError(f"beside {beside}: is the same model as {path}; name another")
    if beside not in (None, "base"):
        assert beside is not None
        both = zip((beside, path), run_configs([beside, path]), strict=True)
        return [Speaker(name, load(name, config, full_precision)) for name, config in both]
    handle = load(path, full_precision=full_precision)
    own = Speaker(path, handle)
    if beside == "base":
        beside = handle.config.model
        went_on = beside is not None and is_adapter(beside)  # so the base is an adapter as well
        if hasattr(handle.model, "disable_adapter") and not went_on:
            return [Speaker("base", handle, handle.model.disable_adapter), own]
        if beside is None:
            raise UserError(
                f"beside base: {path} does not say what it was trained from; name that model"
            )
        config = loaded_like(run_config(beside), run_config(path))
        return [Speaker("base", load(beside, config, full_precision)), own]
    return [own]


def answers(
    speaker: Speaker,
    prompts: Sequence[Prompt],
    batch_size: int = 8,
    progress: bool = True,
    **options: Any,
) -> Iterator[str]:
    """The answers to the prompts, in their order; prompts of like length share a batch."""
    shown = None if progress and len(prompts) > 1 else True
    found: dict[int, str] = {}
    lengths = [len(speaker.handle.prompt_ids(prompt)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda n: lengths[n])
    bar = tqdm(total=len(prompts), desc=speaker.name[-30:], unit=" answers", disable=shown)
    with bar:
        for at in range(0, len(order), batch_size):
            batch = order[at : at + batch_size]
            texts = speaker.answer([prompts[n] for n in batch], **options)
            found.update(zip(batch, texts, strict=True))
            bar.update(len(batch))
    return (found[n] for n in range(len(prompts)))
