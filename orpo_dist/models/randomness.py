"""Randomness off in the base model: both answers of a pair must meet the same network.

Dropouts of every sort, dropped layers and jittered routers, by kind and not by family. What a model
computes in evaluation stays as it is, and its config keeps its numbers in what is saved.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import types
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orpo_dist.base.reasons import reason_of
from orpo_dist.base.types import UserError
from orpo_dist.engines.runtime import Runtime, gathered_while_used
from orpo_dist.scoring import proof
from orpo_dist.scoring.miniature import is_small, miniature
from orpo_dist.scoring.model_config import parts

logger = logging.getLogger("orpo_dist")

DROPS = re.compile(r"drop")  # dropout, attn_pdrop, layerdrop, drop_prob, ...
ELSEWHERE = re.compile(r"classifier|summary")  # of heads that a language model does not run
JITTERS = re.compile(r"jitter")
DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
KEPT = "orpo_kept"  # attribute of a quiet model: what its config said before
ADAPTER = "lora_dropout"  # a setting of its own

TOKENS, TRIES = 24, 8  # of the check; a layer dropped one time in ten may well stay twice
FINE_LIMIT, COARSE_LIMIT = 1e-5, 1e-2  # nats: of a CPU, of a GPU, which adds in any order


def quiet(model: nn.Module) -> str:
    """Switch the base model's randomness off; returns what was on, in words ('': nothing).

    Probabilities become 0, in modules and in the config, which some modules read as they run. A
    module with jitter stays in evaluation mode instead: some sample besides, and some use that
    number in evaluation too. The dropout of an adapter stays.
    """
    numbers = [f"{name} {value:g}" for name, value in _quiet_config(model)]
    counts: Counter[str] = Counter(
        kind
        for path, module in model.named_modules()
        if ADAPTER not in path
        for kind in _quiet_module(module)
    )
    places = [f"{count} {kind}" for kind, count in counts.items()]
    return "; ".join(", ".join(some) for some in (numbers, places) if some)


def _quiet_config(model: Any) -> list[tuple[str, float]]:
    """Set the probabilities of a config to 0; those that were not, by name."""
    kept = vars(model).setdefault(KEPT, [])
    found: dict[str, float] = {}
    for part in parts(model.config):
        for name, value in _chances(part, DROPS):
            if not ELSEWHERE.search(name):
                kept.append((part, name, value))
                setattr(part, name, type(value)(0))
                found[name] = max(value, found.get(name, 0.0))
    return sorted(found.items())


def _quiet_module(module: nn.Module) -> Iterator[str]:
    """Switch one module's own randomness off; yields what there was."""
    if isinstance(module, DROPOUTS):
        if module.p:
            yield "dropout layers"
        module.p = 0.0
        return
    for name, _ in _chances(module, DROPS):
        setattr(module, name, 0.0)
        yield f"modules with {name}"
    if any(JITTERS.search(name) for name in vars(module)) and "train" not in vars(module):
        if _chances(module, JITTERS):
            yield "routers with jitter"
        module.train = types.MethodType(_stay, module)  # type: ignore[method-assign]
        module.training = False


def _chances(holder: Any, names: re.Pattern[str]) -> list[tuple[str, float]]:
    """The probabilities above 0 of a module or a config under such names."""
    return [
        (name, value)
        for name, value in list(vars(holder).items())
        if names.search(name) and type(value) in (float, int) and value > 0
    ]


def _stay(self: nn.Module, mode: bool = True) -> nn.Module:
    """``train`` of a module that stays in evaluation mode, unlike those in it."""
    for inner in self.children():
        inner.train(mode)
    return self


@contextlib.contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """Within it, a quiet model's config says what it said before: for saving."""
    kept = getattr(model, KEPT, [])
    for part, name, value in kept:
        setattr(part, name, value)
    try:
        yield
    finally:
        for part, name, value in kept:
            setattr(part, name, type(value)(0))


# --- the check


def refuse_random(policy: Any, here: Runtime) -> None:
    """``UserError`` on every rank if a quiet model is still random in training.

    The same few tokens are scored again and again, without gradients: by the model itself where it
    is small or was changed by hand, else by a miniature of it in fp32, which costs next to nothing.
    """
    check = partial(_refuse_random, policy)
    if here.engine.name == "zero3":
        with gathered_while_used(policy):
            check()
    else:
        here.on_main(check)


def _refuse_random(policy: Any) -> None:
    core = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    with proof.undisturbed():
        try:
            apart = most_apart(_stand_in(core))
        except Exception as error:  # does not run on plain tokens, which training will say better
            logger.info("randomness: not checked (%s)", reason_of(error))
            return
    if apart:
        raise UserError(
            f"model {type(core).__name__}: draws random numbers in training that cannot be "
            f"switched off here (the same tokens scored twice differ by {apart:.1g} nats), so that "
            "the two answers of a pair would meet different networks; train another model"
        )


def _stand_in(core: Any) -> Any:
    """What the check runs on."""
    if is_small(core):
        return core
    try:
        small = miniature(core)
    except Exception:  # of a class that cannot be built small
        return core
    quiet(small)
    return core if proof.changed(core, small) else small


@torch.no_grad()
def most_apart(model: Any) -> float:
    """How far apart scorings of the same tokens in training lie, in nats; 0: they are the same.

    The dropout of an adapter is set aside.
    """
    text = model.config.get_text_config()
    longest = min(getattr(text, "max_position_embeddings", None) or TOKENS, TOKENS)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, text.vocab_size, (2, longest), generator=draw).to(_device(model))
    training, apart, first = model.training, 0.0, None
    with _without_adapter_dropout(model), torch.random.fork_rng(devices=_gpus(ids)):
        model.train()
        try:
            for _ in range(TRIES):
                before = _draws(ids)
                logps = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
                first = logps if first is None else first
                apart = max(apart, (logps - first).abs().max().item())
                if logps is not first and before == _draws(ids):
                    break  # nothing is drawn
        finally:
            model.train(training)
    return apart if apart > (COARSE_LIMIT if ids.is_cuda else FINE_LIMIT) else 0.0


def _device(model: Any) -> torch.device:
    return model.get_input_embeddings().weight.device


def _gpus(ids: Tensor) -> list[torch.device]:
    return [ids.device] if ids.is_cuda else []


def _draws(ids: Tensor) -> tuple[Any, ...]:
    """Where the sources of random numbers stand."""
    on_gpu = torch.cuda.get_rng_state(ids.device).numpy().tobytes() if ids.is_cuda else b""
    by_numpy = np.random.get_state()
    here = torch.get_rng_state().numpy().tobytes()
    return here, on_gpu, random.getstate(), str(by_numpy)


@contextlib.contextmanager
def _without_adapter_dropout(model: nn.Module) -> Iterator[None]:
    found = [
        (module, module.p)
        for path, module in model.named_modules()
        if ADAPTER in path and isinstance(module, DROPOUTS)
    ]
    for module, _ in found:
        module.p = 0.0
    try:
        yield
    finally:
        for module, chance in found:
            module.p = chance
