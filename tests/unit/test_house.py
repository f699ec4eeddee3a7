"""What is written about the house is true of it: figures, picture, walk, and every name."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from orpo_dist import __version__
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import rooms
import rooms_picture
import walk

PAGES = [
    *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.py"),
    *ROOT.glob(".github/**/*.*"),
]  # fmt: skip
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it tells of former names
FOLDERS = "orpo_dist|tests|benchmarks|docs|examples|scripts|launch|sweeps"
UPDATE = "run python scripts/rooms.py --write and python scripts/walk.py --write"


def written(marks: str) -> str:
    page = (ROOT / rooms.PAGE).read_text(encoding="utf-8")
    return page.split(f"<!-- {marks} -->\n")[1].split(f"\n<!-- /{marks} -->")[0]


def test_figures_and_picture_are_those_of_the_imports() -> None:
    house = rooms.built(ROOT)
    assert written("counts") == house.counts, UPDATE
    assert written("rooms") == rooms.table(ROOT, house), UPDATE
    drawn = rooms.picture(rooms.layers(ROOT), house.arrows, house.modules)
    assert (ROOT / rooms.IMAGE).read_text(encoding="utf-8") == drawn, UPDATE


def test_the_walk_is_the_one_that_a_pair_takes() -> None:
    assert written("walk") == walk.page(walk.walked(ROOT)), UPDATE


def test_every_room_has_a_caption() -> None:
    assert set(rooms.built(ROOT).arrows) - {"__main__"} == set(rooms_picture.CAPTIONS)


def test_circles_are_found_also_by_detours_and_inside_functions(tmp_path: Path) -> None:
    package = tmp_path / "orpo_dist"
    for room, text in {
        "a": "def f():\n    from orpo_dist import b",
        "b": "from ..c import thing",
        "c": "import orpo_dist.a.inside\nfrom orpo_dist.d import other",
        "d": "if TYPE_CHECKING:\n    from orpo_dist.a import x\nelse:\n    import orpo_dist",
    }.items():
        (package / room).mkdir(parents=True)
        (package / room / "inside.py").write_text(text)
    (package / "__init__.py").write_text("from orpo_dist import a")
    house = rooms.built(tmp_path)
    assert house.arrows == {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}
    assert rooms.circles(house.arrows) == [{"a", "b", "c"}]
    assert house.counts == "4 modules in 4 rooms, 4 arrows, circles: 1."
    assert rooms.built(tmp_path, types=True).arrows["d"] == {"a"}


def test_the_version_is_the_same_everywhere() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.*)$", changes, re.M)
    assert versions[0] == "Unreleased"
    assert versions[1].split()[0] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_is_of_something_that_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = {file.name for folder in FOLDERS.split("|") for file in (ROOT / folder).rglob("*.py")}
    missing = [p for p in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]+\w", text) if not here(p)]
    missing += [n for n in re.findall(r"`(\w+\.py)`", text) if n not in names]
    missing += [n for n in re.findall(r"\borpo_dist(?:\.\w+)+", text) if not importable(n)]
    if page.suffix == ".md":
        links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
        missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def here(path: str) -> bool:
    return (ROOT / path).exists()


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, rest = name.rpartition(".")
    try:
        importlib.import_module(name)
        return True
    except ImportError:
        return "." in name and module != "" and hasattr(importlib.import_module(module), rest)
