"""How hard each pair is for the base model: its margin, scored once and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from orpo_dist.batching.token_budget import asked_budget
from orpo_dist.config import ORPOConfig
from orpo_dist.data import PairDataset, cache_root
from orpo_dist.engines.runtime import Runtime
from orpo_dist.evaluation import score_dataset
from orpo_dist.models.model import commit_of, load_policy, local_device, resolve_precision
from orpo_dist.upstream.hf_models import whole_weights

logger = logging.getLogger("orpo_dist")

WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
DIGITS = 4  # nats; a different cut into batches must not change the order


def base_margins(config: ORPOConfig, pairs: PairDataset, here: Runtime) -> np.ndarray:
    """logp(chosen) − logp(rejected) of every pair under the model that training starts from, (N,).

    In nats per token. The ranks share the work; the result is cached by model and pairs, so that a
    resumed run and the stages of a run find it again.
    """
    path = cache_root() / "margins" / f"{_key(config, pairs)}.npy"
    margins = here.on_main(lambda: _read(path, len(pairs)))
    if margins is not None:
        return margins
    logger.info("curriculum: scoring %d pairs under the base model, once", len(pairs))
    with whole_weights():
        model = load_policy(config)
    if not getattr(model, "is_quantized", False):  # those are where they belong
        model = model.to(local_device())
    scores = score_dataset(
        model,
        pairs,
        config.batch_size,
        attention=config.attention,
        token_budget=asked_budget(config),
        here=here,
    )
    margins = np.round(scores.margin, DIGITS)
    here.on_main(lambda: _write(path, margins))
    return margins


def _key(config: ORPOConfig, pairs: PairDataset) -> str:
    """What the margins depend on; another number of processes is not part of it."""
    assert config.model is not None
    folder = Path(config.model)
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    commit = commit_of(config.model, config.model_revision)
    parts: list[Any] = [
        config.model, config.model_revision, commit, stats, config.quantization, config.peft,
        resolve_precision(config), pairs.digest(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(path: Path, count: int) -> np.ndarray | None:
    try:
        margins = np.load(path, allow_pickle=False)
    except (OSError, ValueError):  # not there, or damaged
        return None
    return margins if margins.shape == (count,) else None


def _write(path: Path, margins: np.ndarray) -> None:
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(scratch, margins)
        scratch.replace(path)
    except OSError as error:  # a full or read-only disk
        logger.info("margins not cached: %s", error)
