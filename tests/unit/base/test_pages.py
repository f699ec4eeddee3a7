"""What all pages are made of: the frame, the table, the figures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jinja2 import Environment, TemplateError

from orpo_dist.base.pages import figures, render
from tests.conftest import ROOT

PACKAGE = ROOT / "orpo_dist"
TEMPLATES = sorted(path for path in PACKAGE.rglob("*.html"))
EVIL = "<script>alert(1)</script>\"'&"


def part(source: str, **values: object) -> str:
    """A template as a room would have it, rendered."""
    environment: Environment = render._environment()
    text = '{% from "base/pages/parts.html" import table, figures, folded %}' + source
    return environment.from_string(text).render(**values)


def test_every_page_stands_in_the_one_frame() -> None:
    pages = [path for path in TEMPLATES if path.parent != PACKAGE / "base" / "pages"]
    assert {path.parent.name for path in pages} == {
        "audit", "compare", "evaluation", "found", "runs"
    }  # fmt: skip
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert text.startswith('{% extends "base/pages/base.html" %}')
        assert "<table" not in text and "<svg" not in text and "safe" not in text
    for path in PACKAGE.rglob("*.py"):  # nor does any module write markup by hand
        if path.parent != PACKAGE / "base" / "pages":
            assert not re.search(r"</?(table|td|html|svg|style)\b", path.read_text("utf-8")), path


def test_cells_are_text_whatever_stands_in_them() -> None:
    shown = part("{{ table(head, rows, texts=('b',), marks=marks) }}", head=["a", "b"],
                 rows=[[EVIL, 3], [1, EVIL]], marks=[EVIL, ""])  # fmt: skip
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 3
    assert shown.count('<th scope="row">') == 2 and '<td class="text">3</td>' in shown
    assert "\"'" not in shown  # no way out of an attribute


def test_a_name_that_is_not_given_is_an_error() -> None:
    with pytest.raises(TemplateError):
        part("{{ absent }}")


def test_folded_text_is_whole() -> None:
    shown = part("{{ folded('f', text) }}", text="\n a: <b>\n")
    assert shown.endswith("<pre>\n\n a: &lt;b&gt;\n</pre></details>\n")  # the first break is ours


def test_names_are_no_formulas_and_powers_on_axes_are() -> None:
    figure, axis = figures.panel()
    axis.plot([1e-6, 1e-4], [1, 2], label=r"a$x \bar$")
    axis.set(xscale="log", title=r"/x/$HOME\bar$")
    figures.legend(figure)
    svg = figures.inline_svg(figure, EVIL)
    assert r"a$x \bar$" in svg and r"/x/$HOME\bar$" in svg
    assert "mathdefault" not in svg
    assert ">−</tspan>" in svg  # the sign of an exponent, set by itself
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).get("role") == "img"  # noqa: S314 (our own)


def test_figures_take_the_colours_of_the_page_by_day_and_night() -> None:
    figure, axis = figures.panel()
    for colour in figures.COLOURS:
        axis.plot([0, 1], [0, 1], color=colour)
    svg = figures.inline_svg(figure)
    style = (PACKAGE / render.STYLE).read_text()
    day, _, night = style.partition("@media (prefers-color-scheme: dark)")
    for colour, name in figures.NAMES.items():
        assert f"--{name}: {colour}" in day and f"--{name}: #" in night
        assert f"var(--{name}, {colour})" in svg
        assert not re.search(rf"(?<!, ){colour}", svg)
    assert "white" not in svg and "#ffffff" not in svg  # the paper is the page's


def test_the_same_figure_is_the_same_file_and_ids_are_not_given_twice() -> None:
    def drawn() -> str:
        figure, axis = figures.panel()
        axis.plot([0, 1], [1, 3])
        return figures.inline_svg(figure)

    assert drawn() == drawn()
    assert not re.search(r'<g id="', drawn())
    assert "<metadata" not in drawn() and "<!--" not in drawn()


def test_names_of_curves_that_begin_with_an_underscore_are_told() -> None:
    figure, axis = figures.panel()
    axis.plot([0, 1], [0, 1], label="plain")
    axis.plot([0, 1], [1, 0], label=figures.curve_label("_hidden"))
    figures.legend(figure)
    assert "_hidden" in figures.inline_svg(figure)


def test_few_values_on_a_logarithmic_axis_are_its_ticks() -> None:
    figure, axis = figures.panel()
    axis.plot([1e-6, 5e-6, 5e-5], [1, 2, 3])
    figures.logarithmic(axis, [1e-6, 5e-6, 5e-5])
    svg = figures.inline_svg(figure)
    assert axis.get_xscale() == "log"
    assert all(text in svg for text in ("1e-06", "5e-06", "5e-05"))


def test_writing_files_needs_no_template_engine() -> None:
    code = "import sys, orpo_dist.base.pages; sys.exit('jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(ROOT))
