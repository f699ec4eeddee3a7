"""A newer flash attention behind torch's kernels: tried before it is used, and said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from torch.nn import attention
from torch.nn.attention import _registry

from orpo_dist.scoring import flash

pytestmark = pytest.mark.skipif(not flash.ACTIVATES, reason="this torch has its own alone")


class Handle:
    def remove(self) -> None:
        """Nothing was registered."""


def missing() -> Any:
    raise ModuleNotFoundError("No module named 'flash_attn'")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What torch knows of; neither package is here."""
    known: dict[str, Any] = {"FA3": Handle, "FA4": missing}
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_IMPLS", known)
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_ACTIVE", None)
    yield known


def test_the_newest_that_is_right(
    installed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orpo_dist")
    active = []

    def differs() -> None:
        active.append(attention.current_flash_attention_impl())

    assert flash.use_newest(differs) == "FA3" and active == ["FA3"]  # FA4 is not installed
    assert "in one kernel of FA3" in caplog.text
    installed["FA4"] = Handle
    assert flash.use_newest(differs) == "FA3"  # what is active stays
    attention.restore_flash_attention_impl()
    assert flash.use_newest(differs) == "FA4"


def test_one_that_is_wrong_is_not_left_there(
    installed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert flash.use_newest(lambda: "computes something else here") is None
    assert attention.current_flash_attention_impl() is None
    assert "not in a kernel of FA3, which is installed, as it computes something" in caplog.text


def test_none_is_installed(installed: dict[str, Any]) -> None:
    installed["FA3"] = missing
    assert flash.use_newest(lambda: None) is None
    assert not flash.use("FA3") and not flash.use("FA9")


def test_one_that_does_not_start_is_said(
    installed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise RuntimeError("flash_attn_interface does not expose FA3 kernels")

    installed["FA3"] = broken
    assert flash.use_newest(lambda: None) is None
    assert "FA3, which does not start (" in caplog.text and "does not expose" in caplog.text


def test_other_ranks_take_the_same(installed: dict[str, Any]) -> None:
    assert flash.use("FA3") and flash.use("FA3")
    assert attention.current_flash_attention_impl() == "FA3"
