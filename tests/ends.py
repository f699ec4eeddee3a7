"""The oldest and the newest versions of what the package needs, for pip; ``make test-oldest``.

    python tests/ends.py oldest [TORCH]   the lowest versions that pyproject.toml allows
    python tests/ends.py newest [TORCH]   names alone: whatever pip finds, past the upper bounds

TORCH: another version of torch, for machines that have a CPU build of that one alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("quant",)
RUNNERS = ["hypothesis", "pytest", "pytest-timeout"]


def needed() -> dict[str, str]:
    """The lower bounds of the package and of the extras that core tests use."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    lines = [*project["dependencies"]]
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    found = (re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def requirements(end: str, torch: str = "") -> list[str]:
    """What to hand to ``pip install``."""
    lowest = needed()
    if end == "newest":
        wanted = dict.fromkeys(lowest, "")
    else:
        wanted = {name: f"=={version}" for name, version in lowest.items()}
    if torch:
        wanted["torch"] = f"=={torch}"
    return [f"{name}{version}" for name, version in wanted.items()] + RUNNERS


if __name__ == "__main__":
    print(" ".join(requirements(*sys.argv[1:])))
