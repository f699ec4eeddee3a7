"""The smoke sweep as it is shipped, its best trial by hand, and a worker that is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpo_dist.sweeps.protocol import Trial, read_trials
from tests.launching import Process, curve, finish, launched, run
from tests.sweeps.running import (
    WORKER,
    done,
    first_worker,
    ray_processes,
    run_of,
    sweep,
    trial_named,
    wait_until,
)

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``orpo-dist sweep sweeps/smoke.yaml``, watched; its folder."""
    folder = tmp_path_factory.mktemp("sweeps") / "smoke"
    process = sweep("sweeps/smoke.yaml", "--project-name", str(folder))
    _watch_a_stop(folder, process)
    said = done(process)
    assert "4 trials, 2 at once, each 2 × ddp with 0.5 CPU" in said
    assert not ray_processes(process), "processes were left behind"
    yield folder


def _watch_a_stop(folder: Path, process: Process) -> None:
    """The first trial that is stopped early frees both its workers within seconds."""

    def two_running() -> bool:
        trials = [t for t in read_trials(folder) if t.status == "running" and t.step]
        return len(trials) == 2 and len(ray_processes(process, WORKER)) == 4

    def stopped() -> list[Trial]:
        return [t for t in read_trials(folder) if t.status == "stopped"]

    wait_until(two_running, process)
    workers = ray_processes(process, WORKER)
    wait_until(stopped, process)
    workers |= ray_processes(process, WORKER)
    wait_until(lambda: len(workers & ray_processes(process, WORKER)) <= 2, process, 10)


def test_every_trial_has_an_end_and_a_reason(project: Path) -> None:
    trials = read_trials(project)
    assert [t.name.split("-")[0] for t in trials] == ["000", "001", "002", "003"]
    assert {t.status for t in trials} == {"finished", "stopped"}
    for trial in trials:
        record = run_of(project, trial)
        assert (record["engine"], record["world_size"]) == ("ddp", 2)
        if trial.status == "stopped":
            assert trial.why.startswith("asha at step") and 0 < trial.step < 60
            assert record["status"] == "stopped"
        else:
            assert (trial.step, record["status"]) == (60, "completed")


def test_two_trials_ran_at_once(project: Path) -> None:
    first, second = (_lived(project, trial_named(project, number)) for number in ("000", "001"))
    assert first[0] < second[1] and second[0] < first[1]


def _lived(project: Path, trial: Trial) -> tuple[float, float]:
    """When a trial began, and when it logged last: whichever is the faster, asha may stop one."""
    lines = project / "trials" / trial.name / "metrics.jsonl"
    return run_of(project, trial)["started"], lines.stat().st_mtime


def test_the_best_trial_is_the_same_by_hand(project: Path, tmp_path: Path) -> None:
    best = json.loads((project / "sweep.json").read_text())["best"]
    run([
        *launched("ddp"), "train", "--config", str(project / "best.yaml"),
        "--project-name", str(tmp_path / "hand"),
    ])  # fmt: skip
    swept = project / "trials" / best["name"]
    for metric in ("loss/orpo", "eval/loss/sft", "eval/loss/orpo", "eval/rewards/accuracies"):
        ours, by_hand = curve(swept, metric), curve(tmp_path / "hand", metric)
        assert ours.keys() == by_hand.keys() and ours
        assert max(abs(ours[step] - by_hand[step]) for step in ours) < 1e-4, metric
    assert best["loss/sft"] == pytest.approx(by_hand_end(tmp_path / "hand"), abs=1e-4)


def by_hand_end(folder: Path) -> float:
    """SFT loss on the held-out data at the end of a run."""
    losses = curve(folder, "eval/loss/sft")
    return losses[max(losses)]


def test_data_were_tokenised_by_the_driver_alone(project: Path) -> None:
    cache = Path(os.environ["ORPO_DIST_CACHE"]) / "pairs"
    first_run = min(run_of(project, trial)["started"] for trial in read_trials(project))
    assert max(entry.stat().st_mtime for entry in cache.iterdir()) < first_run


def test_ray_keeps_no_weights(project: Path) -> None:
    kept = [path for path in (project / "ray").rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if path.suffix in (".safetensors", ".pt", ".pth")]
    assert sum(path.stat().st_size for path in kept) < 2 << 20


def test_a_sweep_that_is_over_is_not_run_again(project: Path) -> None:
    code, _, errors = finish(sweep("sweeps/smoke.yaml", "--project-name", str(project)))
    assert code == 2 and "already holds a sweep" in errors


def test_a_killed_worker_costs_its_trial_nothing_but_time(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = sweep("smoke", "--project-name", str(folder), "--max-concurrent-trials", "1",
                    "--max-steps", "60", "--eval-steps", "6")  # fmt: skip
    killed = wait_until(lambda: _rank_0_past(folder, 12, process), process)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: trial_named(folder, "000").status == "finished", process)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    trial = trial_named(folder, "000")
    assert trial.failures == 1
    resumed = curve(folder / "trials" / trial.name, "eval/loss/sft")
    undisturbed = curve(project / "trials" / trial.name, "eval/loss/sft")
    assert resumed == pytest.approx(undisturbed, abs=1e-4)


def _rank_0_past(folder: Path, step: int, process: Process) -> int | None:
    for trial in read_trials(folder):
        if trial.step >= step:
            return first_worker(folder, trial, process)
    return None
