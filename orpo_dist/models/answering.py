"""How a saved model answers in plain transformers: generation settings that hold, and its ends."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orpo_dist.runs.folder import read_json

logger = logging.getLogger("orpo_dist")

FILE = "generation_config.json"

# What makes draws out of logits; without do_sample transformers refuses to save them.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
# What decides which other settings mean anything.
MODES = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")


def mended(values: Mapping[str, Any]) -> dict[str, Any]:
    """Generation settings that transformers takes and saves, from whatever a base has brought.

    Sampling values without ``do_sample`` mean that it is on; a temperature of 0 means that it is
    off. What is still refused beside the others is left out.
    """
    given = {k: v for k, v in values.items() if v is not None and not k.startswith("_")}
    if given.get("temperature") == 0:
        given = {k: v for k, v in given.items() if k not in (*SAMPLING, "do_sample")}
    elif "do_sample" not in given and any(
        not _holds({k: given[k]}) for k in SAMPLING if k in given
    ):
        given["do_sample"] = True
    if _holds(given):
        return given
    kept: dict[str, Any] = {}
    for name in sorted(given, key=lambda name: name not in MODES):
        if _holds({**kept, name: given[name]}):
            kept[name] = given[name]
    return kept


def _holds(values: Mapping[str, Any]) -> bool:
    """Whether transformers would save these settings."""
    from transformers import GenerationConfig

    try:
        with _unheard():
            GenerationConfig(**values).validate(strict=True)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without the warnings of transformers on what is only being tried."""
    from transformers import logging as library

    before = library.get_verbosity()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(before)


def mended_file(model: str, revision: str | None) -> Any:
    """The ``GenerationConfig`` to load a model with; None where its own holds as it is.

    model: a folder or a hub id; old ones have such settings in their config.json.
    """
    from transformers import GenerationConfig

    values = _written(model, revision)
    good = mended(values)
    _say(model, values, good)
    return None if good == values else GenerationConfig(**good)


def _written(model: str, revision: str | None) -> dict[str, Any]:
    """The generation settings in a model's files, without those that are not set."""
    from transformers import GenerationConfig
    from transformers.utils import cached_file

    for name in (FILE, "config.json"):
        with contextlib.suppress(OSError, ValueError):  # not there, not JSON
            values = json.loads(
                Path(cached_file(model, name, revision=revision)).read_text("utf-8")
            )
            known = vars(GenerationConfig()) if name != FILE else values
            return {k: v for k, v in values.items() if v is not None and k in known}
    return {}


def own_settings(folder: str | Path) -> Any:
    """The ``GenerationConfig`` that lies in a folder, mended; None if there is none."""
    from transformers import GenerationConfig

    values = read_json(Path(folder).expanduser() / FILE)
    return GenerationConfig(**mended(values)) if values else None


def mend_generation(model: Any) -> None:
    """Make the generation settings of a model of transformers ones that it can be saved with."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    values = {k: v for k, v in config.to_dict().items() if v is not None}
    good = mended(values)
    _say(model.config.name_or_path, values, good)
    model.generation_config = type(config)(**good)


def _say(model: str, values: Mapping[str, Any], good: Mapping[str, Any]) -> None:
    """What was mended, once a process."""
    public = {k: v for k, v in values.items() if not k.startswith("_")}
    changed = [f"{k} is {str(v).lower()}" for k, v in good.items() if public.get(k) != v]
    changed += [f"{name} is left out" for name in public if name not in good]
    if changed:
        _say_once(f"{model}: its generation settings do not hold together; {', '.join(changed)}")


@functools.cache
def _say_once(sentence: str) -> None:
    logger.info(sentence)


def stop_at(model: Any, *ends: int) -> None:
    """Let a model of transformers stop at these tokens beside its own, also once it is saved."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    own = config.eos_token_id
    if own is None:
        own = model.config.get_text_config().eos_token_id
    known = [] if own is None else own if isinstance(own, list) else [own]
    every = list(dict.fromkeys([*known, *ends]))
    config.eos_token_id = every[0] if len(every) == 1 else every
