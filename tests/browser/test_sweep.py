"""The page of a sweep in a real Chromium, without JavaScript and without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orpo_dist.sweeps.found.page import write_page
from tests.sweeps.folders import alphas, trial


@pytest.mark.parametrize("width", [1200, 400])
def test_all_figures_and_tables_can_be_seen(browser: Any, tmp_path: Path, width: int) -> None:
    lost = trial("x", 0.5, 9.0, orpo_alpha=2.0, status="failed", why="out of <b>memory</b>")
    page_file = write_page(alphas(tmp_path / "s", lost))
    context = browser.new_context(
        java_script_enabled=False, viewport={"width": width, "height": 900}
    )
    asked: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert asked == [page_file.as_uri()]
    headings = page.locator("h2").all_inner_texts()
    for words in ("orpo_alpha against accuracy and perplexity", "What can be had at once",
                  "Learning curves", "All settings together", "Points", "Trials"):  # fmt: skip
        assert words in headings
    figures = page.locator("figure svg").all()
    assert len(figures) == 5
    for figure in figures:
        box = figure.bounding_box()
        assert box["width"] > 300 and box["height"] > 100 and box["x"] + box["width"] <= width
    assert "Take orpo_alpha 0.5" in page.locator(".take").inner_text()
    assert "out of <b>memory</b>" in page.locator("tr.failed").inner_text()
    settings = page.locator("details pre").first
    assert not settings.is_visible()
    page.locator("summary").first.click()  # folds without a script
    assert "orpo_alpha: 0.5" in settings.inner_text()
    context.close()
