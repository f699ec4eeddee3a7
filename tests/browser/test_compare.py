"""The comparison page in a real Chromium: keys, saving, blindness, and hostile answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.compare.page import comparison_page
from orpo_dist.compare.sheet import Sheet
from orpo_dist.compare.tally import read_ratings, tally
from tests.unit.compare.test_compare import EVIL, make_sheet, sheet_of


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """``visit(sheet)`` opens its page; nothing may fail, be blocked or leave the machine."""
    context = browser.new_context(accept_downloads=True)
    troubles: list[str] = []

    def open_page(sheet: Sheet, **options: Any) -> Any:
        path = tmp_path / "page.html"
        path.write_text(comparison_page(sheet), encoding="utf-8")
        page = context.new_page(**options)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("dialog", lambda dialog: dialog.accept())
        page.on("request", lambda request: troubles.append(request.url)
                if not request.url.startswith(("file:", "blob:")) else None)  # fmt: skip
        page.goto(path.as_uri())
        return page

    yield open_page
    context.close()
    assert troubles == []


def saved(page: Any, folder: Path, press: Any) -> Path:
    with page.expect_download() as download:
        press()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def shown(page: Any) -> list[int]:
    items = page.locator(".item:visible")
    return [int(items.nth(n).get_attribute("data-item")) for n in range(items.count())]


def test_a_session_by_keyboard(visit: Any, tmp_path: Path) -> None:
    sheet = sheet_of(4)
    page = visit(sheet)
    assert shown(page) == [0]
    page.keyboard.press("s")  # without a name there is nothing to save under
    assert "enter your name" in page.locator("#progress").inner_text()
    page.keyboard.type("Ada 1n")  # letters and digits go to the name, not to the items
    page.keyboard.press("Enter")
    assert shown(page) == [0]
    page.keyboard.press("4")
    page.keyboard.press("6")
    page.keyboard.press("ArrowLeft")
    assert shown(page) == [1]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("0")
    page.keyboard.press("ArrowRight")
    assert shown(page) == [3]
    page.keyboard.press("p")
    assert shown(page) == [2]
    page.keyboard.press("ArrowLeft")  # a change of mind
    page.keyboard.press("ArrowDown")
    assert shown(page) == [3]
    assert "4 of 4 rated, now save" in page.locator("#progress").inner_text()
    path = saved(page, tmp_path, lambda: page.keyboard.press("s"))
    assert path.name == "ratings-ada-1n.json"
    assert "you are done" in page.locator("#progress").inner_text()
    content = json.loads(path.read_text())
    keys = ("item", "choice", "left", "right")
    assert [[rating[key] for key in keys] for rating in content["ratings"]] == [
        [0, "left", 4, 1], [1, "tie", None, None], [2, "left", None, 5], [3, "tie", None, None]
    ]  # fmt: skip
    found = tally(sheet, [read_ratings(path, sheet)])
    points = [float(sheet.items[0].swapped), 0.5, float(sheet.items[2].swapped), 0.5]
    assert found["win_rate"] == sum(points) / 4


def test_a_session_by_mouse(visit: Any, tmp_path: Path) -> None:
    sheet = sheet_of(2)
    page = visit(sheet)
    page.locator("#rater").fill("Bob")
    marks = page.locator(".item:visible .quality[data-side=right]")
    marks.nth(2).click()
    assert marks.nth(2).get_attribute("aria-pressed") == "true"
    for _ in range(2):
        page.locator(".item:visible .choice[data-choice=right]").click()
    path = saved(page, tmp_path, lambda: page.locator("#save").click())
    found = read_ratings(path, sheet)
    assert found.points.tolist() == [1.0 - item.swapped for item in sheet.items]
    assert found.left.tolist() == [0, 0]


def test_ratings_outlive_the_window(visit: Any) -> None:
    page = visit(sheet_of(3))
    page.locator("#rater").fill("Ada")
    page.locator("#rater").press("Enter")
    page.keyboard.press("ArrowRight")
    page.reload()
    assert shown(page) == [1]
    assert page.locator("#rater").input_value() == "Ada"
    assert "1 of 3 rated" in page.locator("#progress").inner_text()


def test_a_reload_knows_what_is_saved_and_caps_lock_does_not_matter(
    visit: Any, tmp_path: Path
) -> None:
    page = visit(sheet_of(1))
    progress = page.locator("#progress")
    page.locator("#rater").fill("Ada")
    page.locator("#rater").press("Enter")
    page.keyboard.press("ArrowRight")
    page.reload()
    assert "1 of 1 rated, now save" in progress.inner_text()
    saved(page, tmp_path, lambda: page.keyboard.press("S"))
    page.reload()
    assert "you are done" in progress.inner_text()


def test_hostile_answers_are_shown_and_do_nothing(visit: Any) -> None:
    sheet = make_sheet(("a", "b"), EVIL, [EVIL, [f"{text}!" for text in EVIL]], 0)
    assert any("\ufffd" in item.a for item in sheet.items)  # of a zero byte, HTML makes nothing
    page = visit(sheet)
    for number, item in enumerate(sheet.items):
        assert shown(page) == [number]
        texts = page.locator(".item:visible .side pre")
        for side, text in enumerate(item.sides):
            assert texts.nth(side).text_content() == text
        page.keyboard.press("n")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1 and page.locator("img").count() == 0


def test_the_policy_stops_scripts_that_get_in(browser: Any, tmp_path: Path) -> None:
    """A second line of defence: even unescaped markup could not run."""
    page, path = browser.new_page(), tmp_path / "page.html"
    content = comparison_page(sheet_of(2)).replace(
        "a answers 0", "<script>window.hacked=1</script>"
    )
    path.write_text(content.replace("b answers 0", "<img src=x onerror='window.hacked=1'>"))
    page.goto(path.as_uri())
    assert page.locator("script").count() == 2
    assert page.evaluate("window.hacked") is None


def test_all_answers_are_readable_without_javascript(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(comparison_page(sheet_of(3)))
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(path.as_uri())
    assert page.locator(".item:visible").count() == 3
    assert page.locator("button:visible").count() == 0
    assert page.get_by_text("allow JavaScript").is_visible()
