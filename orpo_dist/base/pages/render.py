"""Templates -> pages. Every room keeps its own; the frame, the table and the style are here."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

PACKAGE = Path(__file__).parents[2]
STYLE = "base/pages/style.css"


def render(template: str, title: str, style: str = "", script: str = "", **values: Any) -> str:
    """A whole page. All values are text and get escaped, but for ``Markup`` (figures).

    template, style, script: files of this package, as in ``runs/report.html``; the style comes on
    top of the common one. A page with a script gets a policy that lets nothing run or load but this
    script and style.
    """
    styles = "".join(_source(name) for name in (STYLE, style) if name)
    code = _source(script) if script else Markup()
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            style=Markup(styles),  # noqa: S704 (our own files)
            script=code,
            policy=_policy(styles, code) if script else "",
            **values,
        )
    )


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _source(name: str) -> Markup:
    return Markup((PACKAGE / name).read_text(encoding="utf-8"))  # noqa: S704 (our own files)


def _policy(style: str, script: str) -> Markup:
    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return Markup(  # noqa: S704 (digests)
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
