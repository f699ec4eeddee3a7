"""A tied head lies once in what every engine saves, and its checkpoints are whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orpo_dist.checkpoints.checkpoint import saved_shapes
from orpo_dist.runs.lineage import whole_checkpoint
from orpo_dist.runs.manifest import facts_of
from tests.launching import launched, run, training


@pytest.mark.parametrize(
    "engine",
    [  # ZeRO-1 saves as ZeRO-2 does, DDP as one process
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "zero1")),
        "zero2",
        "zero3",
        "fsdp2",
    ],
)
def test_a_tied_head_is_saved_once(
    engine: str, kind_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    steps = ("--max-steps", "1", "--save-strategy", "steps", "--save-steps", "1")
    run(launched(engine) + training(kind_dir("qwen3"), tmp_path, *steps))
    checkpoint = whole_checkpoint(tmp_path)
    assert checkpoint is not None
    assert facts_of(checkpoint)["world_size"] == 2
    for folder in (tmp_path, checkpoint):
        names = saved_shapes(folder)
        assert "model.embed_tokens.weight" in names
        assert "lm_head.weight" not in names
