"""Sweep files for tests that run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_dist.sweeps.searched.files import load_sweep

# All four trials of the smoke sweep, without a scheduler that would end one early.
ALL = {"metric": "loss/sft", "workers_per_trial": 2, "resources_per_worker": {"CPU": 0.5}}


@pytest.fixture
def write_sweep(tmp_path: Path) -> Any:
    """``write_sweep(space, steps=40, **settings)`` -> (file, folder)"""

    def write(space: dict[str, Any], steps: int = 40, **settings: Any) -> tuple[Path, Path]:
        base = {**load_sweep("smoke").base, "max_steps": steps, "eval_steps": 4}
        base["project_name"] = str(tmp_path / "sweep")
        base |= settings.pop("base", {})
        path = tmp_path / "my.yaml"
        path.write_text(yaml.safe_dump({**ALL, "base": base, "space": space, **settings}))
        return path, tmp_path / "sweep"

    return write
