"""Pages: one self-contained HTML file each, readable without a network; and where files go.

``render`` makes a page from its template, ``figures`` draws what stands in it. Neither is imported
here: what writes no page needs no template engine.
"""

from __future__ import annotations

from pathlib import Path

from orpo_dist.base.types import UserError


def output_path(name: str, value: str) -> Path:
    """Where to write, checked before the work begins. name: of the flag."""
    path = Path(value)
    if not path.resolve().parent.is_dir():
        raise UserError(f"{name} {path}: its folder does not exist")
    if path.is_dir():
        raise UserError(f"{name} {path}: is a folder; name a file")
    return path


def write_output(name: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{name} {path}: cannot be written ({error.strerror})") from error
