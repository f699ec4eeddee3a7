"""The report: readable without the run's libraries, safe whatever stands in the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from orpo_dist import ORPOConfig, UserError
from orpo_dist.config import dump_config
from orpo_dist.runs.report import PANELS, curves_figures, curves_svg, write_report

LOG = [
    {"step": 0, "eval/loss": 3.0, "eval/loss/orpo": 3.0, "eval/rewards/accuracies": 0.5},
    {"step": 1, "loss/orpo": 2.5, "rewards/accuracies": 0.75, "logps/margins": 0.1},
    {"step": 2, "eval/loss": 2.0, "eval/loss/orpo": 2.0, "eval/rewards/accuracies": 0.875},
]


def run_folder(folder: Path, log: list[dict[str, float]], **state: object) -> Path:
    folder.mkdir()
    lines = "".join(json.dumps(entry) + "\n" for entry in log)
    (folder / "metrics.jsonl").write_text(lines)
    (folder / "run.json").write_text(json.dumps({"status": "completed", **state}))
    (folder / "config.yaml").write_text(dump_config(ORPOConfig(model="<b>m</b>")))
    return folder


def test_first_and_last_evaluation_stand_on_top(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run", LOG)).read_text()
    assert "50.0% → 87.5%" in page
    assert "3.0000 → 2.0000" in page
    assert "<script" not in page
    assert "http" not in page.partition("<svg")[0]  # nothing is fetched


def test_curves_hold_the_logged_points() -> None:
    drawn = [ElementTree.fromstring(svg) for svg in curves_svg(LOG)]  # noqa: S314 (our own)
    assert len(drawn) == len(PANELS) and all(svg.tag.endswith("svg") for svg in drawn)
    text = "".join(text for svg in drawn for text in svg.itertext())
    assert "accuracy, held out" in text
    assert "SFT" not in text  # a curve without points is not announced


def test_whatever_stands_in_the_files_is_only_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    folder = run_folder(tmp_path / "x", LOG, status="failed", error=evil)
    (folder / "data_report.json").write_text(
        json.dumps({
            evil: {
                "rows": 1, "pairs": 0, "truncated": {}, "tokens": {},
                "skipped": {"not_json": {"count": 1, "meaning": evil, "first": [evil]}},
            }
        })
    )  # fmt: skip
    page = write_report(folder).read_text()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 4
    assert "&lt;b&gt;m&lt;/b&gt;" in page


def test_a_run_that_logged_nothing_has_a_report_too(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run", [], status="interrupted")).read_text()
    assert "Nothing was logged" in page
    assert "interrupted" in page


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)


def test_the_report_needs_no_torch(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", LOG)
    code = (
        "import sys; from pathlib import Path; from orpo_dist.runs.report import write_report; "
        f"write_report(Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stages_and_schedules_are_told(tmp_path: Path) -> None:
    log = [{"step": step, "stage": 1 + (step > 2), "loss/orpo": 2.0} for step in (1, 2, 3, 4)]
    folder = run_folder(tmp_path / "run", log)
    config = ORPOConfig(orpo_alpha=0.5, orpo_alpha_schedule="ramp", stages=[{}, {"lr": 1e-5}])
    (folder / "config.yaml").write_text(dump_config(config))
    page = write_report(folder).read_text()
    assert "alpha 0.5 by ramp (additive)" in page
    assert "2 stages" in page
    for figure in curves_figures(log):
        (boundary,) = (line for line in figure.axes[0].lines if line.get_linestyle() == ":")
        assert list(boundary.get_xdata()) == [2, 2]
