"""Ensembles on pairs: the packed path, and the command over all methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import evaluate_model, load_ensemble
from orpo_dist.cli import main
from orpo_dist.ensembles.evaluate import evaluate_ensemble
from tests.unit.ensembles.members import EVAL


@pytest.mark.parametrize("average_of", ["probabilities", "logits"])
def test_evaluation_on_the_packed_path_is_that_of_the_averaged_model(
    average_of: Any, three: list[Path]
) -> None:
    ensemble = load_ensemble(three, average_of=average_of, weights=[1, 2, 3])
    found = evaluate_ensemble(ensemble, EVAL, progress=False)["models"]
    ensemble.averaged.config = ensemble.averaged.config.replace(attention="padded")
    slow = evaluate_model(ensemble.averaged, EVAL, progress=False)
    for name in ("perplexity", "mean_margin", "mean_log_odds"):
        assert found["average"][name] == pytest.approx(slow[name], rel=1e-4)
    assert found["average"]["preference_accuracy"] == slow["preference_accuracy"]
    alone = evaluate_model(three[1], EVAL, progress=False)
    assert found[str(three[1])]["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-6)


def test_evaluate_command_on_all_methods(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ensemble"
    assert main(["ensemble", "create", str(folder), *map(str, three)]) == 0
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    words = ["ensemble", "evaluate", str(folder), "--data-path", EVAL, "--json", str(out)]
    assert main([*words, "--html", str(page)]) == 0
    found = json.loads(out.read_text())
    assert list(found["models"]) == [*map(str, three), "average", "vote", "best_of"]
    assert found["models"]["vote"]["perplexity"] is None
    best = max(three, key=lambda p: found["models"][str(p)]["preference_accuracy"])
    assert {c["first"] for c in found["comparisons"]} == {str(best)}
    assert "<svg" in page.read_text()
    assert "best_of against" in capsys.readouterr().out
