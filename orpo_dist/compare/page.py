"""The page on which people compare: self-contained, blind, driven by keys.

All that models wrote is escaped text in the markup; the script never touches it, and a content
security policy lets nothing run or load but our own script and style.
"""

from __future__ import annotations

from orpo_dist.base.pages.render import render
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
CHOICES = (("left", "← left is better"), ("tie", "↓ tie"), ("right", "right is better →"))


def comparison_page(sheet: Sheet, title: str = "Which answer is better?") -> str:
    """The page as HTML text; it does not say which model wrote what."""
    return render(
        "compare/page.html",
        title=title,
        style="compare/page.css",
        script="compare/page.js",
        sheet=sheet,
        keys=KEYS,
        choices=CHOICES,
    )
