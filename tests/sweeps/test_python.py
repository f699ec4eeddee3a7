"""``find_best_alpha`` and ``sweep`` from Python, on a real Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.launching import finish, start

pytest.importorskip("ray")

SCRIPT = """
import json, pathlib, sys
import numpy, ray  # before ours: it has settled then how its processes know each other
import orpo_dist as od
from orpo_dist.sweeps.searched.files import load_sweep

folder = sys.argv[1]
base = {**load_sweep("smoke").base, "max_steps": 12, "eval_steps": 6, "project_name": folder}
best = od.find_best_alpha({**base, "lr": 1e-3}, numpy.linspace(0, 1, 2))
logs = sorted(pathlib.Path(folder).glob("trials/*/metrics.jsonl"))
times = [log.stat().st_mtime for log in logs]
grids = [od.sweep(folder + "/sweep.yaml", resume=True, **limits)
         for limits in ({}, {"max_failures": 1})]
print(json.dumps({
    "alpha": best.alpha,
    "config": [best.config.orpo_alpha, best.config.lr, best.config.max_steps],
    "advice": best.advice,
    "page": best.page.name if best.page.exists() else None,
    "accuracies": {p.settings["orpo_alpha"]: p.estimate("accuracy").mean
                   for p in best.results.ranked},
    "grids": [[type(grid).__name__, len(grid), grid.num_errors] for grid in grids],
    "kept": times == [log.stat().st_mtime for log in logs],
}))
"""


def test_the_best_alpha_in_one_call(tmp_path: Path) -> None:
    script, folder = tmp_path / "best.py", tmp_path / "sweep"
    script.write_text(SCRIPT)
    code, output, errors = finish(start([sys.executable, str(script), str(folder)]))
    assert code == 0, errors
    found = json.loads(output.splitlines()[-1])
    accuracies = {float(alpha): value for alpha, value in found["accuracies"].items()}
    assert set(accuracies) == {0.0, 1.0}
    assert accuracies[found["alpha"]] == max(accuracies.values())
    assert found["config"] == [found["alpha"], 1e-3, 12]
    assert found["page"] == "report.html"
    assert str(f"orpo_alpha {found['alpha']:g}") in found["advice"][0]
    # Finished trials are kept, not run again: by what Ray knows, and with another limit without.
    assert found["grids"] == [["ResultGrid", 2, 0]] * 2 and found["kept"]
