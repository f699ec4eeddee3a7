"""Figures in one style: matplotlib draws them, the page's own style colours them, by day and night.

A panel is as wide as half a page, or a phone, so that its letters stay as large as the text around.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

INK, FAINT = "#1f2937", "#9ca3af"
COLOURS = ("#2563eb", "#d97706", "#059669", "#b91c1c", "#7c3aed", "#0891b2", "#be185d", "#4b5563")
# Every colour by its name in style.css.
NAMES = {INK: "ink", FAINT: "faint", **{hue: f"c{n}" for n, hue in enumerate(COLOURS, start=1)}}
WIDTH, HEIGHT = 4.6, 3.1  # inches; at 96 dots an inch, as browsers have them
SMALLEST = 0.75  # a panel shrinks to this on a phone; a wider one can be scrolled
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "orpo_dist",  # the same figure is the same file
    "font.size": 9.5, "axes.titlesize": 10.5, "legend.fontsize": 9, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.edgecolor": FAINT,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "grid.color": FAINT, "axes.axisbelow": True,
}  # fmt: skip


def panel(width: float = WIDTH, height: float = HEIGHT) -> tuple[Any, Any]:
    """A figure and its one axis. width, height: in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def legend(figure: Any, columns: int = 2) -> None:
    """What the curves are, below them; nothing where no curve has a name."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if not handles:
        return
    import matplotlib

    if max(map(len, labels)) > 28:
        columns = 1
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * rows)
    with matplotlib.rc_context(STYLE):
        figure.legend(handles, labels, loc="outside lower left", ncols=columns,
                      handlelength=1.6, columnspacing=1.2, borderaxespad=0.1)  # fmt: skip


def curve_label(name: str) -> str:
    """A name of the user's for a curve: what begins with an underscore matplotlib leaves out."""
    return " " + name


def logarithmic(axis: Any, values: Sequence[float]) -> None:
    """The x axis on a logarithmic scale, with a tick at each of the values where they are few."""
    axis.set_xscale("log")
    marked = sorted(set(values))
    if len(marked) <= 7:
        axis.set_xticks(marked, [f"{value:g}" for value in marked])
        axis.set_xticks([], minor=True)


def inline_svg(figure: Any, label: str = "") -> Markup:
    """A figure as an ``<svg>`` element to stand inside a page. label: for who cannot see it."""
    import matplotlib
    from matplotlib.axis import Tick
    from matplotlib.text import Text

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        # Names with dollar signs are no formulas; the ticks of logarithmic axes are.
        ticks = {text for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
        for text in set(figure.findobj(Text)) - ticks:
            text.set_parse_math(False)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_for_page(buffer.getvalue(), figure, label))  # noqa: S704 (matplotlib escapes)


def _for_page(svg: str, figure: Any, label: str) -> str:
    """What matplotlib wrote for a file, as part of a page: its fonts, its colours, no ids twice."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\n *<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([^;\"]*?)([\d.]+px)[^;\"]*", r"font: \1\2 system-ui, sans-serif", svg)
    for colour, name in NAMES.items():
        svg = svg.replace(f": {colour}", f": var(--{name}, {colour})")
    width = figure.get_figwidth() * 96
    shape = (
        f'role="img" style="min-width: {SMALLEST * width:.0f}px; max-width: {width * 1.1:.0f}px"'
    )
    named = f' aria-label="{Markup.escape(label)}"' if label else ""
    return svg.replace("<svg", f"<svg {shape}{named}", 1)
