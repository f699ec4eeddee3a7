"""The smoke sweep on two SLURM nodes, a Ray node on each; and through a requeue."""

from __future__ import annotations

from pathlib import Path

import pytest

from orpo_dist.sweeps.protocol import read_trials
from tests.conftest import ROOT
from tests.slurm.conftest import Submit, SubmittedJob

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def submit_smoke(submit: Submit, folder: Path) -> SubmittedJob:
    return submit(
        "slurm_ray.sbatch", "sweep", str(ROOT / "sweeps" / "smoke.yaml"), "--resume",
        "--project-name", str(folder),
    )  # fmt: skip


def hosts(folder: Path) -> set[str]:
    """Where the trials' first workers ran."""
    texts = [path.read_text() for path in folder.glob("trials/*/log.txt")]
    return {text.partition("first worker on ")[2].partition(",")[0] for text in texts}


def test_the_smoke_sweep_on_two_nodes(submit: Submit, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    job = submit_smoke(submit, folder)
    ended = job.wait(400)
    assert (ended["ExitCode"], ended["Restarts"]) == ("0:0", "0"), job.logs()
    trials = read_trials(folder)
    assert len(trials) == 4 and all(trial.over for trial in trials)
    assert {"finished", "stopped"} == {trial.status for trial in trials}
    assert hosts(folder) == {"node1", "node2"}
    assert "Take orpo_alpha" in job.log(0, "driver")
    assert (folder / "report.html").exists()


def test_a_sweep_goes_on_after_a_requeue(submit: Submit, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    job = submit_smoke(submit, folder)
    job.until(lambda: any(12 <= trial.step < 60 for trial in read_trials(folder)), 200)
    job.signal("USR1")
    job.until(lambda: job.show()["Restarts"] == "1", 90)
    assert job.records("end")[0]["code"] == 85
    before = {trial.name: trial for trial in read_trials(folder)}
    assert any(trial.status == "interrupted" for trial in before.values())
    ended = job.wait(400)
    assert ended["ExitCode"] == "0:0", job.logs()
    trials = read_trials(folder)
    assert len(trials) == 4 and all(trial.over for trial in trials)
