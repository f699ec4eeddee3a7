"""The versions that are allowed: what was tested lies in them, and what comes after does not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from orpo_dist.upstream.register import TESTED
from tests.ends import EXTRAS, needed, requirements

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", TESTED)
def test_the_next_version_with_other_private_parts_is_not_allowed(name: str) -> None:
    extras = PROJECT["optional-dependencies"].values()
    everything = [line for lines in (PROJECT["dependencies"], *extras) for line in lines]
    (line,) = (one for one in everything if re.match(rf"{name}(\[.*\])?>=", one))
    lowest, upper = (numbers(bound) for bound in re.findall(r"[>=<]+([\d.]+)", line))
    tested = numbers(TESTED[name])
    assert lowest <= tested < upper
    following = (tested[0] + 1,) if name == "datasets" else (tested[0], tested[1] + 1)
    assert upper == following


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def test_both_ends_name_every_dependency_of_the_package() -> None:
    names = {re.split(r"[>=<\[]", line)[0] for line in PROJECT["dependencies"]}
    assert names <= needed(EXTRAS).keys()
    assert f"torch=={needed(EXTRAS)['torch']}" in requirements("oldest")
    assert "torch==2.13.0" in requirements("oldest", "2.13.0")
    newest = requirements("newest")
    assert names <= set(newest) and not any("=" in one for one in newest)
