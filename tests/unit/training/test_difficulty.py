"""What the margins of a curriculum are kept by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers.utils

from orpo_dist import ORPOConfig
from orpo_dist.models.model import commit_of
from orpo_dist.training.difficulty import _key


def at_commit(commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's cache hold a model at a commit."""

    def cached_file(model: str, name: str, revision: Any = None) -> str:
        if name != "config.json":
            raise OSError(name)
        return f"/cache/models--some--model/snapshots/{commit}/{name}"

    monkeypatch.setattr(transformers.utils, "cached_file", cached_file)


def test_a_hub_model_that_has_moved_on_is_scored_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    config, pairs = ORPOConfig(model="some/model", data_path="x"), SimpleNamespace(digest=str)
    keys = set()
    for commit in ("a" * 40, "b" * 40, "a" * 40):
        at_commit(commit, monkeypatch)
        assert commit_of("some/model", None) == commit
        keys.add(_key(config, pairs))
    assert len(keys) == 2


def test_a_folder_stands_at_no_commit(tmp_path: Path) -> None:
    assert commit_of(str(tmp_path), None) is None
    (tmp_path / "config.json").write_text("{}")
    assert commit_of(str(tmp_path), None) is None
