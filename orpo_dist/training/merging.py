"""An adapter becomes a plain model in its own folder, which holds one of the two at every instant.

All of it happens on the CPU, beside whatever the device still holds.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from orpo_dist.base.types import UserError
from orpo_dist.checkpoints.checkpoint import check_weights
from orpo_dist.config import ORPOConfig
from orpo_dist.models.model import load_trained, merged_model
from orpo_dist.runs.folder import MERGING, read_json, write_json
from orpo_dist.upstream.hf_models import whole_weights

logger = logging.getLogger("orpo_dist")


def merge_in_place(folder: Path, config: ORPOConfig) -> None:
    """Replace the adapter in ``folder`` by the plain model that it makes of its base.

    The model is written whole beside the adapter and checked before it takes its place. Raises
    ``UserError`` where it cannot be written; then the adapter is as it was.
    """
    scratch = folder / MERGING
    shutil.rmtree(scratch, ignore_errors=True)  # of an attempt that was killed
    try:
        try:
            merged = merged_model(folder, config)
            merged.save_pretrained(scratch)
        except (OSError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"merge_adapter: the merged model cannot be written ({reason}); the adapter in "
                f"{folder} is whole, and 'orpo-dist ensemble soup NEW-FOLDER {folder}' merges it "
                "where there is room"
            ) from error
        check_weights(scratch, merged)
        _take_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _take_place(scratch: Path, folder: Path) -> None:
    """Move the model into the adapter's folder; one rename makes it a model's folder.

    transformers lays an adapter over the weights beside it where both configs are there, and finds
    nothing where neither is. So the adapter's becomes the model's by its name, when it says both.
    """
    adapter, plain = folder / "adapter_config.json", folder / "config.json"
    for file in scratch.iterdir():
        if file.name != plain.name:
            file.replace(folder / file.name)
    write_json(adapter, {**read_json(scratch / plain.name), **read_json(adapter)})
    adapter.replace(plain)
    (scratch / plain.name).replace(plain)  # says no more than a model's
    for left in folder.glob("adapter_*"):
        left.unlink()


def forget_merged(folder: Path) -> None:
    """Remove the model that an earlier attempt merged, now that a new adapter lies beside it."""
    if (folder / "adapter_config.json").exists():
        for pattern in ("config.json", "model*.safetensors", "model.safetensors.index.json"):
            for left in folder.glob(pattern):
                left.unlink()


def open_merged(folder: Path, config: ORPOConfig) -> Any:
    """The saved model as ``load`` would open it; on the CPU where the device has no room for it."""
    config = config.replace(quantization=None)  # which was the base's
    with whole_weights():
        try:
            return load_trained(folder, config)
        except torch.OutOfMemoryError:
            logger.warning(
                "merge_adapter: the merged model does not fit on the device, so the model that "
                "train returns stays on the CPU"
            )
        return load_trained(folder, config, device="cpu")
