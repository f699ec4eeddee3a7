"""From the folder of a sweep to its means, intervals, files, advice and page."""

from __future__ import annotations

import csv
import json
import math
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.base.intervals import wilson_interval
from orpo_dist.base.types import UserError
from orpo_dist.cli import main
from orpo_dist.config import load_config
from orpo_dist.sweeps.found.advice import advise
from orpo_dist.sweeps.found.page import sweep_page, write_page
from orpo_dist.sweeps.found.plots import parallel_figure, response_figures
from orpo_dist.sweeps.found.results import read_results
from tests.sweeps.folders import alphas, make_sweep, trial


def test_seeds_become_one_point_with_an_interval_of_seeds_and_pairs(tmp_path: Path) -> None:
    results = read_results(alphas(tmp_path / "s"))
    assert [point.settings for point in results.ranked] == [
        {"orpo_alpha": 0.5}, {"orpo_alpha": 1.0}, {"orpo_alpha": 0.0},
    ]  # fmt: skip
    estimate = results.ranked[0].estimate("accuracy")
    assert estimate is not None and estimate.kind == "seeds"
    values = [0.80, 0.82, 0.81]
    half = 4.30265 * statistics.stdev(values) / math.sqrt(3)  # t of 2 degrees of freedom
    half /= 0.81 * (1 - 0.81)  # on the logit scale
    assert math.isclose(estimate.mean, 0.81)
    low, high = wilson_interval(162, 200)

    def logit(share: float) -> float:
        return math.log(share / (1 - share))

    down = math.hypot(half, logit(0.81) - logit(low))
    up = math.hypot(half, logit(high) - logit(0.81))
    assert logit(estimate.low) == pytest.approx(logit(0.81) - down, rel=1e-5)
    assert logit(estimate.high) == pytest.approx(logit(0.81) + up, rel=1e-5)
    assert results.best_trial is not None and results.best_trial.name == "0.5-1"


def test_one_seed_has_the_interval_of_its_pairs(tmp_path: Path) -> None:
    content = {"space": {"orpo_alpha": {"grid": [0, 1]}}}
    project = make_sweep(tmp_path, content, trial("a", 0.75, 3.0, orpo_alpha=1.0), pairs=40)
    (point,) = read_results(project).points
    accuracy, perplexity = point.estimate("accuracy"), point.estimate("perplexity")
    assert accuracy is not None and perplexity is not None
    assert (accuracy.low, accuracy.high) == wilson_interval(30, 40)
    assert perplexity.kind == "none"


def test_only_finished_trials_are_ranked(tmp_path: Path) -> None:
    better = trial("x", 0.99, 1.0, orpo_alpha=0.7, seed=1, status="stopped", why="asha")
    results = read_results(alphas(tmp_path / "s", better))
    assert {"orpo_alpha": 0.7} in [p.settings for p in results.points]
    assert results.best is not None and results.best.settings == {"orpo_alpha": 0.5}


def test_the_front_holds_what_nothing_else_beats(tmp_path: Path) -> None:
    results = read_results(alphas(tmp_path / "s"))
    assert [p.settings["orpo_alpha"] for p in results.front()] == [0.5, 0.0]


def front(tmp_path: Path, *points: tuple[float, float]) -> list[tuple[float, float]]:
    """The accuracies and perplexities on the front of a sweep over as many learning rates."""
    content = {"space": {"lr": {"grid": [1e-6, 1e-5]}}}
    made = [trial(f"t{i}", *point, lr=(i + 1) * 1e-6) for i, point in enumerate(points)]
    results = read_results(make_sweep(tmp_path, content, *made))
    return [points[round(point.settings["lr"] * 1e6) - 1] for point in results.front()]


def test_a_tie_leaves_the_front_to_who_is_better_in_the_other(tmp_path: Path) -> None:
    """A point that is as good in one and worse in the other is beaten, in whatever order."""
    best, as_accurate, as_fluent, fluent = (0.8, 3.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.0)
    assert front(tmp_path / "a", best, as_accurate, as_fluent, fluent) == [best, fluent]
    assert front(tmp_path / "b", fluent, as_fluent, as_accurate, best) == [best, fluent]
    assert front(tmp_path / "c", as_fluent, best) == [best]
    assert front(tmp_path / "d", as_accurate, best) == [best]


def test_the_same_twice_is_on_the_front_once(tmp_path: Path) -> None:
    assert front(tmp_path, (0.8, 3.0), (0.8, 3.0), (0.7, 2.0)) == [(0.8, 3.0), (0.7, 2.0)]


def test_of_equal_means_the_first_is_taken(tmp_path: Path) -> None:
    """And of equal trials of a point as well, so that a page read twice says the same."""
    content = {"space": {"orpo_alpha": {"grid": [0, 1]}}, "repeats": 2}
    made = [
        trial(f"{alpha:g}-{seed}", 0.75, 3.0, orpo_alpha=alpha, seed=seed)
        for alpha in (1.0, 0.0)
        for seed in (0, 1)
    ]
    results = read_results(make_sweep(tmp_path, content, *made))
    assert [point.settings for point in results.ranked] == [
        {"orpo_alpha": 0.0}, {"orpo_alpha": 1.0},
    ]  # fmt: skip
    assert results.best_trial is not None and results.best_trial.name == "0-0"


def test_the_files_of_a_sweep(tmp_path: Path) -> None:
    project = alphas(tmp_path / "s")
    page = write_page(project)
    assert page == project / "report.html"
    content = json.loads((project / "sweep.json").read_text())
    assert content["best"]["settings"] == {"orpo_alpha": 0.5, "seed": 1}
    assert len(content["trials"]) == 9 and len(content["points"]) == 3
    rows = list(csv.DictReader((project / "sweep.csv").open()))
    assert [row["orpo_alpha"] for row in rows[:3]] == ["0.0"] * 3
    assert float(rows[4]["accuracy"]) == 0.82
    config = load_config(project / "best.yaml")
    assert (config.orpo_alpha, config.seed, config.resume_from_checkpoint) == (0.5, 1, "never")
    assert config.project_name == "s-best"


def test_the_advice_says_what_to_take_and_what_it_costs(tmp_path: Path) -> None:
    text = " ".join(advise(read_results(alphas(tmp_path / "s"))))
    assert text.startswith("Take orpo_alpha 0.5: preference accuracy 0.810 (95 % 0.743 to 0.863)")
    assert "Beside alpha 0 (plain fine-tuning): accuracy +0.210, perplexity +5.0%" in text
    assert "within the intervals" not in text
    assert "1 other point(s) cannot be told from it" in text  # alpha 1
    assert "lowest perplexity" not in text  # alpha 1 speaks worse
    assert "one seed" not in text


def test_the_advice_names_ends_noise_and_failures(tmp_path: Path) -> None:
    content = {"space": {"lr": {"grid": [1e-6, 1e-5, 1e-4]}}}
    project = make_sweep(
        tmp_path, content,
        trial("a", 0.6, 3.0, lr=1e-6), trial("b", 0.62, 3.1, lr=1e-5),
        trial("c", 0.63, 3.2, lr=1e-4),
        trial("d", 0.1, 9.0, lr=1e-2, status="failed", why="out of memory"),
        trial("e", 0.1, 9.0, lr=1e-3, status="interrupted"),
        pairs=50,
    )  # fmt: skip
    text = " ".join(advise(read_results(project)))
    assert "The best lr, 0.0001, is the upper end" not in text  # 0.01 and 0.001 were tried too
    assert "There is one seed per point" in text and "50 pairs" in text
    assert "lr 1e-06 has the lowest perplexity" in text
    assert "1 of 5 trials failed: 1 × out of memory." in text
    assert "1 of 5 trials are not over: go on with --resume." in text


def test_the_advice_warns_of_the_end_of_a_grid(tmp_path: Path) -> None:
    content = {"space": {"lr": {"grid": [1e-6, 1e-5, 1e-4]}}}
    made = [trial(f"t{i}", 0.5 + i / 10, 3.0, lr=10.0 ** (i - 6)) for i in range(3)]
    text = " ".join(advise(read_results(make_sweep(tmp_path, content, *made))))
    assert "The best lr, 0.0001, is the upper end" in text


def test_a_sweep_in_which_nothing_finished_has_a_page_too(tmp_path: Path) -> None:
    content = {"space": {"orpo_alpha": {"grid": [0, 1]}}}
    failed = trial("a", 0.5, 3.0, orpo_alpha=1.0, status="failed", why="no <disk>")
    page = write_page(make_sweep(tmp_path, content, failed)).read_text()
    assert "nothing can be recommended" in page and "no &lt;disk&gt;" in page
    assert not (tmp_path / "best.yaml").exists()


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]


def test_the_page_stands_alone_and_escapes_everything(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    extra = trial("x", 0.7, 5.0, orpo_alpha=0.25, seed=0, status="stopped", why=evil)
    project = alphas(tmp_path / "s", extra)
    results = read_results(project)
    page = sweep_page(results, [*advise(results), evil])
    tags = _Tags()
    tags.feed(page)
    assert "script" not in tags.tags and evil not in page
    assert all(link.startswith("#") for link in tags.links)
    assert tags.tags.count("svg") == 5  # alpha (two), front, curves, parallel
    for heading in ("orpo_alpha against accuracy", "What can be had", "Learning", "All settings"):
        assert heading in page


def test_report_writes_the_page_of_a_sweep_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = alphas(tmp_path / "s")
    assert main(["report", str(project)]) == 0
    assert capsys.readouterr().out.strip() == str(project / "report.html")


def test_rounds_are_part_of_one_result(tmp_path: Path) -> None:
    project = alphas(tmp_path / "s")
    alphas(project / "round-2")  # the same points, once more
    finer = {"space": {"orpo_alpha": {"grid": [0.4, 0.6]}}, "repeats": 3}
    best = trial("000", 0.9, 4.1, orpo_alpha=0.6, seed=0)
    make_sweep(project / "round-3", finer, best)
    results = read_results(project)
    assert results.best is not None and results.best.settings == {"orpo_alpha": 0.6}
    assert results.best.project == project / "round-3"
    assert [len(p.trials) for p in results.points] == [3, 3, 3, 3, 3, 3, 1]  # no seed counts twice


def test_lists_and_dollars_in_settings_have_a_page(tmp_path: Path) -> None:
    template = "/x/$HOME\\bar$"  # to matplotlib a formula, and a wrong one
    points = [{"data_path": ["a", "b"], "chat_template": template},
              {"data_path": ["c"], "chat_template": "none"}]  # fmt: skip
    space = {name: {"choice": [point[name] for point in points]} for name in points[0]}
    made = [trial(str(i), 0.5 + i / 9, 3.0 + i, **point) for i, point in enumerate(points)]
    page = write_page(make_sweep(tmp_path, {"space": space}, *made)).read_text()
    assert template in page and page.count("<svg") >= 2


def test_trials_that_never_started_are_counted(tmp_path: Path) -> None:
    content = {"space": {"lr": {"grid": [1e-6, 1e-5, 1e-4]}}, "time_budget": 60}
    project = make_sweep(tmp_path, content, trial("a", 0.6, 3.0, lr=1e-6, status="interrupted"))
    assert advise(read_results(project))[-1] == (
        "3 of 3 trials are not over (2 have not started): go on with --resume; where its time "
        "budget of 60 s is over, with more."
    )


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a sweep"):
        read_results(tmp_path)


def test_two_seeds_stay_in_range_and_equal_ones_keep_a_width(tmp_path: Path) -> None:
    content = {"space": {"orpo_alpha": {"grid": [0, 1]}}, "repeats": 2, "metric": "accuracy"}
    made = [
        trial(f"{a}{s}", accuracy, perplexity, orpo_alpha=a, seed=s)
        for a, accuracies in ((0.0, (0.4583, 0.4583)), (1.0, (0.4167, 0.5833)))
        for s, (accuracy, perplexity) in enumerate(zip(accuracies, (1.5, 9.0), strict=True))
    ]
    results = read_results(make_sweep(tmp_path, content, *made, pairs=24))
    equal, apart = results.points
    accuracy = equal.estimate("accuracy")
    assert accuracy is not None
    assert (accuracy.low, accuracy.high) == pytest.approx(wilson_interval(0.4583 * 24, 24))
    accuracy, perplexity = apart.estimate("accuracy"), apart.estimate("perplexity")
    assert accuracy is not None and 0 < accuracy.low < 0.2 and 0.8 < accuracy.high < 1
    assert perplexity is not None and 1 <= perplexity.low < 5.25 < perplexity.high
    said, page = " ".join(advise(results)), sweep_page(results, [])
    assert "two seeds per point, too few" in said
    assert "Two seeds are too few" in page and "-0." not in page.partition("<h2>Trials")[0][-4000:]


def test_what_does_not_vary_has_no_interval(tmp_path: Path) -> None:
    """Seeds that agree in every digit say nothing of the next one."""
    point = read_results(alphas(tmp_path / "s")).ranked[0]
    estimate = point.estimate("perplexity")
    assert estimate is not None and estimate.kind == "none"


@pytest.mark.parametrize(("space", "log"), [
    ({"lr": {"grid": [1e-5, 2e-5]}}, True),  # a rate
    ({"lr": {"uniform": [1e-5, 2e-5]}}, True),
    ({"weight_decay": {"loguniform": [0.01, 0.1]}}, True),
    ({"weight_decay": {"uniform": [0.01, 0.1]}}, False),
    ({"weight_decay": {"uniform": [0.001, 0.1]}}, True),  # spans a factor of a hundred
    ({"lora_r": {"grid": [4, 8, 16]}}, True),  # grows by a factor
    ({"lora_r": {"grid": [4, 8, 12]}}, False),
    ({"orpo_alpha": {"choice": [0.1, 0.3, 1.0]}}, True),
    ({"orpo_alpha": {"choice": [0, 0.3, 1.0]}}, False),  # zero has no logarithm
])  # fmt: skip
def test_axes_are_logarithmic_where_the_space_is(
    tmp_path: Path, space: dict[str, Any], log: bool
) -> None:
    ((name, domain),) = space.items()
    (values,) = domain.values()
    made = [trial(str(i), 0.5 + i / 9, 3.0 + i, **{name: v}) for i, v in enumerate(values)]
    results = read_results(make_sweep(tmp_path, {"space": space}, *made))
    drawn = response_figures(results, name)
    assert [f.axes[0].get_xscale() for f in drawn] == ["log" if log else "linear"] * 2
    if log and len(values) == 3:  # and so in the parallel coordinates
        heights = [line.get_ydata()[0] for line in parallel_figure(results).axes[0].lines[:3]]
        ratio = math.log(values[1] / values[0]) / math.log(values[2] / values[0])
        assert heights == pytest.approx([0, ratio, 1])
