"""The oldest and the newest versions of what the package needs, for pip; ``make test-oldest``.

    python tests/ends.py oldest [TORCH]   the lowest versions that pyproject.toml allows
    python tests/ends.py newest [TORCH]   names alone: whatever pip finds, past the upper bounds
    python tests/ends.py oldest --after   what is built with torch in place: DeepSpeed

TORCH: another version of torch, for machines that have a CPU build of that one alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS, AFTER = ("quant", "ray"), ("deepspeed",)  # whose private parts are looked for, too
RUNNERS = ["hypothesis", "pytest", "pytest-timeout", "setuptools"]
BOUND = re.compile(r"([\w.-]+(?:\[[\w,]+\])?)>=([\w.]+)(,<[\w.]+)?")


def needed(extras: tuple[str, ...], package: bool = True) -> dict[str, str]:
    """The lower bounds of the extras, and of the package itself."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    lines = [*project["dependencies"]] if package else []
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    found = (BOUND.fullmatch(line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def requirements(end: str, torch: str = "") -> list[str]:
    """What to hand to ``pip install``."""
    after = torch == "--after"
    lowest = needed(AFTER, package=False) if after else needed(EXTRAS)
    if end == "newest":
        wanted = dict.fromkeys(lowest, "")
    else:
        wanted = {name: f"=={version}" for name, version in lowest.items()}
    if torch and not after:
        wanted["torch"] = f"=={torch}"
    return [f"{name}{version}" for name, version in wanted.items()] + RUNNERS * (not after)


if __name__ == "__main__":
    print(" ".join(requirements(*sys.argv[1:])))
