"""The page on which people compare: self-contained, blind, driven by keys.

All that models wrote is escaped text in the markup; the script never touches it, and a content
security policy lets nothing run or load but our own script and style.
"""

from __future__ import annotations

import html
from importlib.resources import files

from orpo_dist.base.pages import page
from orpo_dist.compare.sheet import Sheet

KEYS = (
    ("←", "left is better"),
    ("→", "right is better"),
    ("↓", "tie"),
    ("1 to 5", "quality of the left answer"),
    ("6 to 0", "quality of the right answer"),
    ("n, p", "next, previous"),
    ("s", "save"),
)


def comparison_page(sheet: Sheet, title: str = "Which answer is better?") -> str:
    """The page as HTML text; it does not say which model wrote what."""
    here = files("orpo_dist.compare")
    keys = "".join(f"<li><kbd>{key}</kbd> {text}</li>" for key, text in KEYS)
    body = (
        f'<div id="desk" data-comparison="{sheet.id}" data-items="{len(sheet.items)}" hidden>'
        '<label>Your name <input id="rater" maxlength="80" autocomplete="off"></label> '
        '<button id="save" type="button">Save ratings</button> '
        '<span id="progress" role="status"></span></div>'
        '<p class="still">These are all answers. To rate them, allow JavaScript.</p>'
        f'<ul id="keys" hidden>{keys}</ul>'
    )
    body += "".join(_item(number, sheet) for number in range(len(sheet.items)))
    return page(
        title,
        body,
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
    )


def _item(number: int, sheet: Sheet) -> str:
    item = sheet.items[number]
    columns = "".join(
        f'<div class="side" data-side="{side}"><h3>{side.capitalize()}</h3>'
        f'<pre dir="auto">\n{html.escape(text)}</pre>{_quality(side)}</div>'
        for side, text in zip(("left", "right"), item.sides, strict=True)
    )
    choices = "".join(
        f'<button type="button" class="choice" data-choice="{choice}" hidden>{label}</button>'
        for choice, label in (
            ("left", "← left is better"),
            ("tie", "↓ tie"),
            ("right", "right is better →"),
        )
    )
    return (
        f'<section class="item" data-item="{number}"><h2>{number + 1} of {len(sheet.items)}</h2>'
        f'<pre class="prompt" dir="auto">\n{html.escape(item.prompt)}</pre>'
        f'<div class="sides">{columns}</div><div class="choices">{choices}</div></section>'
    )


def _quality(side: str) -> str:
    buttons = "".join(
        f'<button type="button" class="quality" data-side="{side}" data-quality="{mark}" '
        f'aria-label="quality {mark} of 5">{mark}</button>'
        for mark in range(1, 6)
    )
    return f'<div class="marks" hidden>quality {buttons}</div>'
