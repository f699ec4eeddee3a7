"""Who may go on from a checkpoint, and weights that are not whole."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from orpo_dist import ORPOConfig, UserError
from orpo_dist.checkpoints.checkpoint import (
    IncompleteWeights,
    check_weights,
    go_on_from,
    without_twins,
)
from orpo_dist.engines.engine import Engine
from orpo_dist.engines.runtime import Runtime
from orpo_dist.runs.manifest import seal


def facts(engine: str, world_size: int) -> dict[str, Any]:
    return {"engine": engine, "world_size": world_size, "global_batch_size": 48}


def here(engine: str, world_size: int, offload: str = "none") -> Runtime:
    return Runtime(world_size=world_size, engine=Engine(engine, offload))


def elastic(checkpoint: Path) -> None:
    (checkpoint / "optimizer").mkdir()
    (checkpoint / "optimizer" / "state.json").write_text("{}")


@pytest.mark.parametrize("wrote", [("single", 1), ("zero2", 2), ("fsdp2", 3)])
@pytest.mark.parametrize("reads", [("single", 1), ("ddp", 4), ("zero1", 2), ("zero3", 5)])
def test_any_engine_goes_on_on_any_number(
    wrote: tuple[str, int], reads: tuple[str, int], tmp_path: Path
) -> None:
    seal(tmp_path, {}, facts(*wrote))
    elastic(tmp_path)
    assert go_on_from(tmp_path, ORPOConfig(), here(*reads)).global_batch_size == 48


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    seal(tmp_path, {}, facts("zero2", 2))
    with pytest.raises(UserError, match=r"lacks optimizer/state\.json.*start anew"):
        go_on_from(tmp_path, ORPOConfig(), here("zero2", 2))


def test_state_on_nvme_stays_with_its_engine_and_number(tmp_path: Path) -> None:
    seal(tmp_path, {}, facts("zero3", 2))
    go_on_from(tmp_path, ORPOConfig(), here("zero3", 2, "nvme"))
    with pytest.raises(UserError, match="zero3 with nvme offload on 3 reads only its own"):
        go_on_from(tmp_path, ORPOConfig(), here("zero3", 3, "nvme"))
    with pytest.raises(UserError, match="written by an earlier version, by zero3_nvme"):
        go_on_from(tmp_path, ORPOConfig(), here("zero3", 2))
    elastic(tmp_path)
    with pytest.raises(UserError, match="reads only its own"):
        go_on_from(tmp_path, ORPOConfig(), here("zero3", 2, "nvme"))


def test_another_global_batch_would_be_another_run(tmp_path: Path) -> None:
    seal(tmp_path, {}, facts("single", 1))
    elastic(tmp_path)
    with pytest.raises(UserError, match="steps of 48 pairs, not with global_batch_size 16"):
        go_on_from(tmp_path, ORPOConfig(global_batch_size=16), here("single", 1))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda name, tensor: None, "missing is for one model.norm.weight"),
        (lambda name, tensor: torch.empty(0), "model.norm.weight was saved empty"),
        (lambda name, tensor: tensor[:3].clone(), r"was saved as \(3,\), but is \(64,\)"),
        (lambda name, tensor: tensor, None),
    ],
)
def test_weights_that_are_not_whole(
    change: Any, complaint: str | None, tiny_model: Any, tmp_path: Path
) -> None:
    weights = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    changed = change("model.norm.weight", weights.pop("model.norm.weight"))
    if changed is not None:
        weights["model.norm.weight"] = changed
    save_file(weights, tmp_path / "model.safetensors")
    if complaint is None:
        check_weights(tmp_path, tiny_model)
        return
    with pytest.raises(IncompleteWeights, match=complaint):
        check_weights(tmp_path, tiny_model)


def test_a_tied_head_is_kept_once(tiny_model: Any) -> None:
    """Gathered shards come as a copy for each name."""
    config = copy.deepcopy(tiny_model.config)
    config.tie_word_embeddings = True
    for model, names in ((type(tiny_model)(config), ["lm_head.weight"]), (tiny_model, [])):
        gathered = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert sorted(gathered.keys() - without_twins(gathered, model).keys()) == names
        gathered["lm_head.weight"] += 1  # tied no more: nothing is lost
        assert gathered.keys() == without_twins(gathered, model).keys()
