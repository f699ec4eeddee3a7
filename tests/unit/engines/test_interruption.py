"""A stop by signal evaluates nothing that the uninterrupted run would not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orpo_dist.engines.interruption import StopOnSignal
from orpo_dist.engines.runtime import Runtime


@pytest.mark.parametrize(
    ("stopped", "epoch", "evaluates"),
    [(None, 0.5, True), (130, 0.5, False), (130, 1.0, True), (130, 3 * (1 / 3), True)],
)
def test_only_a_whole_epoch_is_evaluated(
    stopped: int | None, epoch: float, evaluates: bool
) -> None:
    stop = StopOnSignal(Runtime())
    stop.exit_code = stopped
    control = SimpleNamespace(should_evaluate=True, should_save=True)
    stop.on_epoch_end(None, SimpleNamespace(epoch=epoch), control)
    assert (control.should_evaluate, control.should_save) == (evaluates, evaluates)
