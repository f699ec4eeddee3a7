"""Every page in a real Chromium, on a desk and on a phone, by day and by night."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import ORPOConfig
from orpo_dist.audit.audit import audit
from orpo_dist.audit.page import audit_page
from orpo_dist.compare.page import comparison_page
from orpo_dist.evaluation.page import evaluation_page
from orpo_dist.runs.report import write_report
from orpo_dist.sweeps.found.page import write_page
from tests.conftest import DEMO
from tests.sweeps.folders import alphas, make_sweep, trial
from tests.unit.compare.test_compare import sheet_of
from tests.unit.runs.test_report import LOG, run_folder

SMALLEST = 9  # pixels of a letter in a figure
BRIGHT = r"c => c.match(/\d+/g).slice(0, 3).reduce((a, b) => +a + +b, 0)"  # 0 to 765
# Pixels of a letter, also where it stands upright.
SIZE = (
    "t => (m => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b))(t.getScreenCTM())"
)
LONG = "a_rather_long_name_of_a_setting/" * 6

PART = {
    "pairs": 64, "preference_accuracy": 0.7, "accuracy_low": 0.58, "accuracy_high": 0.8,
    "perplexity": 4.2, "mean_margin": 0.1, "mean_log_odds": 0.2, "confidence": 0.6,
}  # fmt: skip
HISTOGRAM = {"histogram": {"counts": [1, 5, 2], "edges": [-1.0, -0.5, 0.5, 1.0]}}
RESULT = {
    **PART, "margin": HISTOGRAM, "log_odds": HISTOGRAM, "categories": {"kind": PART, LONG: PART},
    "calibration": {"bins": [PART, {**PART, "confidence": 0.9}]},
    "length_bias": {"longer_chosen": PART, "longer_rejected": PART, "equal": {"pairs": 0},
                    "gap": 0.1, "gap_low": -0.1, "gap_high": 0.3},
}  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of a page -> its file."""
    folder = tmp_path_factory.mktemp("pages")
    rates = [trial(f"{n}{s}", 0.5 + n / 9 + s / 50, 3.0 + n, lr=lr, target_modules=LONG, seed=s)
             for n, lr in enumerate((1e-6, 1e-5, 1e-4)) for s in range(2)]  # fmt: skip
    content = {"space": {"lr": {"grid": [1e-6, 1e-5, 1e-4]}, "target_modules": {"choice": [LONG]}}}
    run = run_folder(folder / "run", LOG, seconds=1, error=LONG, status="failed")
    (run / "data_report.json").write_text(
        '{"train": {"rows": 9, "pairs": 8, "truncated": {}, "skipped": {"x": {"count": 1, '
        f'"meaning": "no answer", "first": ["{LONG}:17"]}}}}, '
        '"tokens": {"prompt": {"median": 3, "p95": 5, "max": 9}}}}'
    )
    texts = {
        "audit": audit_page(audit(ORPOConfig(data_path=[str(DEMO / "train.jsonl")]))),
        "compare": comparison_page(sheet_of(3)),
        "evaluation": evaluation_page(
            {"models": {"runs/a": RESULT, f"runs/{LONG[:40]}": copy.deepcopy(RESULT)},
             "comparisons": []}
        ),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {
        "report": write_report(run),
        "sweep": write_page(alphas(folder / "alphas")),
        "rates": write_page(make_sweep(folder / "rates", {**content, "repeats": 2}, *rates)),
        **{name: folder / f"{name}.html" for name in texts},
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["report", "sweep", "rates", "audit", "evaluation", "compare"])
def test_a_page_can_be_read(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    assert asked == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # no page scrolls aside
    letters = page.eval_on_selector_all("svg text", f"all => all.map({SIZE})")
    assert name == "compare" or letters
    assert min(letters, default=SMALLEST) >= SMALLEST * 0.8  # exponents are smaller
    assert sorted(letters)[len(letters) // 2] >= SMALLEST if letters else True
    narrow = page.eval_on_selector_all(  # whole words, not one letter under another
        "tbody th", "all => all.map(c => c.getBoundingClientRect().width).filter(w => w < 90)"
    )
    assert narrow == []
    paper, ink = page.evaluate(
        f"(s => [s.backgroundColor, s.color].map({BRIGHT}))(getComputedStyle(document.body))"
    )
    assert (paper > ink) == (scheme == "light") and abs(paper - ink) > 400
    fills = page.eval_on_selector_all(
        "svg text", f"all => all.map(t => getComputedStyle(t).fill).map({BRIGHT})"
    )
    assert all(abs(fill - paper) > 300 for fill in fills)  # also what matplotlib thought black
    context.close()


def test_settings_are_folded(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    for name in ("report", "sweep"):
        page.goto(pages[name].as_uri())
        for block in page.locator("details").all():
            assert not block.locator("pre").is_visible()
            block.locator("summary").click()
            assert block.locator("pre").is_visible()
