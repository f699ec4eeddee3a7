"""Perplexity of plain text, in windows that overlap so that no token stands without a past."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from orpo_dist.base.types import UserError
from orpo_dist.engines.runtime import ALONE, Runtime
from orpo_dist.evaluation.statistics import perplexity
from orpo_dist.models.trained import TrainedModel, context_of
from orpo_dist.scoring.packed_forward import sequence_logps
from orpo_dist.scoring.scorer import make_scorer

WINDOW = 1024  # tokens, where the model takes as many


@dataclass(frozen=True)
class TextSettings:
    """Which texts to read. window: tokens that the model sees at once (default: its context, at
    most 1024). stride: tokens from one window to the next (default: half a window); every token
    is scored once, in the first window that holds it, so it has at least window - stride before
    it, save at the very beginning."""

    paths: tuple[str, ...] = ()
    window: int | None = None
    stride: int | None = None


NO_TEXTS = TextSettings()


def text_perplexity(
    handle: TrainedModel,
    path: str,
    settings: TextSettings,
    here: Runtime = ALONE,
    progress: bool = True,
) -> dict[str, Any]:
    """Perplexity per token and bits per byte of a text file; the processes share the windows.

    Bits per byte compare models of different tokenizers, perplexities do not. Raises ``UserError``.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")  # line ends as they are
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"text {path}: cannot be read ({error})") from error
    ids = handle.encoder.text_ids(text)
    if len(ids) < 2:
        raise UserError(f"text {path}: holds fewer than two tokens")
    handle.check_ids(ids)
    window, stride = _sizes(handle, settings)
    nll = _text_nll(handle, ids, window, stride, here, progress)
    tokens = len(ids) - 1
    return {
        "text": path,
        "tokens": tokens,
        "perplexity": perplexity(nll, tokens),
        "bits_per_byte": nll / math.log(2) / len(text.encode()),
        "window": window,
        "stride": stride,
    }


def _sizes(handle: TrainedModel, settings: TextSettings) -> tuple[int, int]:
    context = context_of(handle.model)
    window = min(WINDOW, context or WINDOW) if settings.window is None else settings.window
    if window < 2:
        raise UserError(f"text-window {window}: must be at least 2 tokens")
    if context and window > context:
        raise UserError(f"text-window {window}: is over the model's context of {context} tokens")
    stride = window // 2 if settings.stride is None else settings.stride
    if not 1 <= stride < window:
        raise UserError(
            f"text-stride {stride}: must be at least 1 and below the window of {window} tokens"
        )
    return window, stride


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """``(begin, end, scored)``: tokens begin to end are seen, the last ``scored`` of them count.

    Together they score every token but the first exactly once.
    """
    done = 1
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        yield begin, end, end - done
        done = end
        if end == tokens:
            return


@torch.no_grad()
def _text_nll(
    handle: TrainedModel, ids: list[int], window: int, stride: int, here: Runtime, progress: bool
) -> float:
    model = handle.model.eval()
    packed = make_scorer(model, handle.config.attention).packed
    every = torch.tensor(ids, device=model.device)
    parts = list(windows(len(ids), window, stride))
    nll = np.zeros(len(parts))  # one by one: the same sum on any number of processes
    shown = None if progress and here.is_main else True
    with tqdm(total=len(ids) - 1, desc="reading", unit=" tokens", disable=shown) as bar:
        for number, (begin, end, scored) in enumerate(parts):
            if number % here.world_size == here.rank:
                logps = sequence_logps(model, every[None, begin:end], scored, packed)
                nll[number] = -logps.double().sum().item()
            bar.update(scored)
    return float(here.sum(nll).sum())
