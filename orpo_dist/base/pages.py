"""What our pages share: one self-contained HTML file, readable without JavaScript or network."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1f2937; overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } h3 { font-size: 1rem }
table { border-collapse: collapse } td + td, th + th { text-align: right }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
small { color: #6b7280 } svg { max-width: 100%; height: auto }
"""


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page. title: text; body: markup that is safe already.

    A page with a script gets a policy that lets nothing run or load but this script and style.
    """
    style, head, end = STYLE + style, "", ""
    if script:
        head = f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">'
        end = f"<script>{script}</script>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{head}<title>{html.escape(title)}</title><style>{style}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{body}{end}</body></html>\n"
    )


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table of escaped cells; all columns but the first are aligned to the right."""

    def line(cells: Iterable[Any], kind: str) -> str:
        shown = "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in cells)
        return f"<tr>{shown}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


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
