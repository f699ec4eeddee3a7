"""The rooms of the package and the arrows between them, counted from its imports.

    python scripts/rooms.py                  # counts, then every room with what it imports
    python scripts/rooms.py --tree 29d45a9   # the same of an earlier revision
    python scripts/rooms.py --write          # the picture and the counts of docs/architecture.md

A room is a folder of the package, or a module in its root (``__init__`` only hands out names). An
arrow goes from a room to one that it imports, at the top of a module or inside a function; imports
for type checkers alone are none. A circle is a set of rooms that all import each other, by detours.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rooms_picture import picture

ROOT = Path(__file__).parents[1]
PACKAGE = "orpo_dist"
PAGE = "docs/architecture.md"
IMAGE = "docs/images/rooms.svg"

Arrows = dict[str, set[str]]


@dataclass(frozen=True)
class House:
    """arrows: the rooms that each room imports. modules: how many stand in each."""

    arrows: Arrows
    modules: dict[str, int]

    @property
    def counts(self) -> str:
        """The figures as one sentence, as they stand on the page."""
        arrows = sum(map(len, self.arrows.values()))
        found = circles(self.arrows)
        return (
            f"{sum(self.modules.values())} modules in {len(self.arrows)} rooms, "
            f"{arrows} arrows, circles: {len(found) or 'none'}."
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tree", metavar="REV", help="count this revision in place of the files")
    parser.add_argument("--types", action="store_true", help="count imports for type checkers too")
    parser.add_argument(
        "--svg", metavar="FILE", help="draw the rooms in the layers of the contract"
    )
    parser.add_argument("--dot", metavar="FILE", help="write the arrows for Graphviz")
    parser.add_argument("--write", action="store_true", help=f"bring {PAGE} up to date")
    options = parser.parse_args()
    if options.tree:
        with tempfile.TemporaryDirectory() as folder:
            unpack(options.tree, Path(folder))
            house = built(Path(folder), options.types)
    else:
        house = built(ROOT, options.types)
    print(house.counts)
    for room in sorted(house.arrows):
        print(f"  {room} ({house.modules[room]}): {', '.join(sorted(house.arrows[room])) or '-'}")
    if options.dot:
        Path(options.dot).write_text(dot(house.arrows), encoding="utf-8")
    if found := circles(house.arrows):
        print("".join(f"circle: {', '.join(sorted(circle))}\n" for circle in found), end="")
        return 1
    if options.svg or options.write:
        drawn = picture(layers(ROOT), house.arrows, house.modules)
        Path(options.svg or ROOT / IMAGE).write_text(drawn, encoding="utf-8")
    if options.write:
        between("counts", house.counts)
        between("rooms", table(ROOT, house))
    return 0


def between(marks: str, text: str) -> None:
    """Put a text between two marks of the page."""
    page = ROOT / PAGE
    begin, end = f"<!-- {marks} -->\n", f"<!-- /{marks} -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def table(root: Path, house: House) -> str:
    """The rooms in Markdown, from bottom to top, each with what it says of itself."""
    lines = ["| room | modules | |", "|---|---|---|"]
    for room in chain.from_iterable(reversed(layers(root))):
        folder = root / PACKAGE / room
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        said = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")
        sentence = " ".join(said[0].split()).replace("``", "`")
        lines.append(f"| `{room}` | {house.modules[room]} | {sentence} |")
    return "\n".join(lines)


def unpack(revision: str, folder: Path) -> None:
    """The package as it was, into a folder."""
    packed = subprocess.run(
        ["git", "archive", revision, PACKAGE], cwd=ROOT, capture_output=True, check=False
    )
    if packed.returncode:
        raise SystemExit(f"--tree {revision}: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")


def built(root: Path, types: bool = False) -> House:
    """The house in a checkout. types: with imports for type checkers."""
    package = root / PACKAGE
    files = [file for file in sorted(package.rglob("*.py")) if file != package / "__init__.py"]
    rooms = {file: file.relative_to(package).with_suffix("").parts[0] for file in files}
    arrows: Arrows = {room: set() for room in rooms.values()}
    modules = dict.fromkeys(arrows, 0)
    for file, room in rooms.items():
        modules[room] += 1
        parts = file.relative_to(root).with_suffix("").parts
        for name in imported(ast.parse(file.read_text(encoding="utf-8")), parts[:-1], types):
            other = name.split(".")[1] if "." in name else ""
            if other in arrows and other != room:
                arrows[room].add(other)
    return House(arrows, modules)


def imported(tree: ast.AST, package: tuple[str, ...], types: bool = False) -> Iterator[str]:
    """Dotted names within our package that a module imports. package: the one it stands in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            yield from imported(ast.Module(node.orelse, []), package)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            if base.split(".")[0] == PACKAGE:  # each name too: it may be a module
                yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node, package, types)


def circles(arrows: Arrows) -> list[set[str]]:
    """Sets of more than one room that reach each other (strongly connected components)."""
    reach = {room: reached(arrows, room) for room in arrows}
    together = {
        frozenset(other for other in reach[room] if room in reach[other]) for room in arrows
    }
    return sorted(map(set, filter(None, together)), key=sorted)


def reached(arrows: Arrows, room: str) -> set[str]:
    """All rooms that a room imports, by detours too; itself only if it stands in a circle."""
    found: set[str] = set()
    open_ = set(arrows[room])
    while open_:
        found |= open_
        open_ = set().union(*(arrows[other] for other in open_)) - found
    return found


def layers(root: Path) -> list[list[str]]:
    """The layers of the first contract in .importlinter, from top to bottom."""
    contracts = configparser.ConfigParser()
    contracts.read(root / ".importlinter", encoding="utf-8")
    rows = contracts["importlinter:contract:rooms"]["layers"].split("\n")
    return [[room.strip() for room in re.split(r"[|:]", row)] for row in rows if row.strip()]


def dot(arrows: Arrows) -> str:
    """The arrows in the language of Graphviz."""
    lines = [
        f'  "{room}" -> "{other}"' for room in sorted(arrows) for other in sorted(arrows[room])
    ]
    return "\n".join(["digraph rooms {", "  rankdir=TB", *lines, "}", ""])


if __name__ == "__main__":
    sys.exit(main())
