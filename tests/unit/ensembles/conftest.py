"""Members for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def three(tiny_model_dir: Path, other_model_dirs: list[Path]) -> list[Path]:
    return [tiny_model_dir, *other_model_dirs]
