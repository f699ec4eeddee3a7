"""As few processes share a sequence as let its longest pair fit."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.engine import Engine
from orpo_dist.engines.runtime import ALONE, Runtime
from orpo_dist.planning import sharing
from orpo_dist.planning.estimate import Estimator, Machine, device_gib

LENGTHS = np.array([[3000, 500, 500], [100, 50, 50]])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setattr(Runtime, "on_main", lambda self, work: work())
    return Runtime(world_size=8, engine=Engine("ddp"))


class Pairs:
    lengths = LENGTHS


def shared(config: ORPOConfig, tiny_model: Any, here: Runtime, memory: float, **more: Any) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "machine_of", lambda _: Machine(8, memory))
        found = sharing.shared_by(config, tiny_model.config, Pairs(), here)  # type: ignore[arg-type]
    return found.ranks_per_sequence


def test_the_fewest_that_fit(
    tiny_model: Any, here: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orpo_dist")
    config = ORPOConfig(sequence_parallel="auto", mixed_precision="none")
    machine = Machine(8, 80)
    estimator = Estimator(tiny_model.config, config, machine, (3000, 500, 500))
    needs = [device_gib(estimator.over(n).parts(here.engine, 1, True)) for n in (1, 2, 4, 8)]
    assert needs == sorted(needs, reverse=True)
    for size, needed in zip((1, 2, 4, 8), needs, strict=True):
        assert shared(config, tiny_model, here, 1.0001 * needed / 0.95) == size
    assert "sequence_parallel auto: 8, as the longest pair, of 4000 tokens, takes" in caplog.text
    assert "too much" not in caplog.text
    assert shared(config, tiny_model, here, 0.1) == 8  # fits nowhere
    assert "too much even so; expect it to run out of memory" in caplog.text


def test_what_is_asked_for_stays(tiny_model: Any, here: Runtime) -> None:
    assert shared(ORPOConfig(sequence_parallel=4), tiny_model, here, 0.1) == 4
    assert shared(ORPOConfig(sequence_parallel="auto"), tiny_model, ALONE, 0.1) == 1
    assert sharing.sizes(ORPOConfig(sequence_parallel=2), 8) == [2]
    assert sharing.sizes(ORPOConfig(sequence_parallel="auto"), 6) == [1, 2, 3, 6]
    with pytest.raises(UserError, match="8 processes cannot be cut into groups of 3"):
        sharing.sizes(ORPOConfig(sequence_parallel=3), 8)


def test_a_step_stays_as_large(tiny_model: Any, here: Runtime) -> None:
    """Micro-batches of a step are those of groups, not of ranks."""
    config = ORPOConfig(sequence_parallel="auto", global_batch_size=32, batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "machine_of", lambda _: Machine(8, 0.1))
        found = sharing.shared_by(config, tiny_model.config, Pairs(), here)  # type: ignore[arg-type]
    assert found.gradient_accumulation == 16  # one group of 8: 32 pairs in micro-batches of 2


def test_what_waits_on_the_host_is_shared_too(tiny_model: Any, here: Runtime) -> None:
    config = ORPOConfig(
        mixed_precision="none", gradient_checkpointing=True, activation_offload=True
    )
    estimator = Estimator(tiny_model.config, config, Machine(8, 80), (3000, 500, 500))
    away = []
    for size in (1, 4):
        parts = estimator.over(size).parts(here.engine, 1, True, True)
        away += [part.bytes for part in parts if part.where == "host"]
    assert away[0] == 4 * away[1] > 0
