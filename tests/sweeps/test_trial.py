"""A trial's folder: taking over checkpoints, failures, records, and what is deleted."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.runs.lineage import newest_checkpoint
from orpo_dist.sweeps.found.ranking import rank, rank_by_point
from orpo_dist.sweeps.protocol import FAILURE, Reports, Trial, read_trials
from orpo_dist.sweeps.running.records import crashed_trials, drop_weights
from orpo_dist.sweeps.running.trial import (
    TrialFailed,
    _reason,
    _refuse_diverged,
    _refuse_hopeless,
    _while_running,
    adopt,
    finished_report,
    settled_report,
)
from orpo_dist.sweeps.running.worker import _leave_reason
from orpo_dist.sweeps.searched.files import load_sweep
from orpo_dist.sweeps.searched.metrics import evaluation_metrics
from tests.checkpoints import make_checkpoint


def test_an_adopted_checkpoint_replaces_the_trial_s_own(tmp_path: Path) -> None:
    donor = make_checkpoint(tmp_path / "donor", 20, "better")
    make_checkpoint(tmp_path / "own", 30)
    adopt(donor, tmp_path / "own")
    found = newest_checkpoint(tmp_path / "own")
    assert found == tmp_path / "own" / "checkpoint-20"
    assert (found / "model.safetensors").read_text() == "better"
    assert (found / "model.safetensors").samefile(donor / "model.safetensors")
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["checkpoint-20"]


def test_a_checkpoint_that_is_gone_is_replaced_by_its_newest_neighbour(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "donor", 24)
    make_checkpoint(tmp_path / "donor", 28)
    adopt(tmp_path / "donor" / "checkpoint-20", tmp_path / "own")
    assert newest_checkpoint(tmp_path / "own") == tmp_path / "own" / "checkpoint-28"
    with pytest.raises(TrialFailed, match="is not there, and none beside it is whole"):
        adopt(tmp_path / "nobody" / "checkpoint-1", tmp_path / "own")


def test_a_cut_checkpoint_is_replaced_by_the_whole_one_beside_it(tmp_path: Path) -> None:
    whole = make_checkpoint(tmp_path / "donor", 20)
    cut = make_checkpoint(tmp_path / "donor", 30)
    (cut / "model.safetensors").write_text("wei")
    adopt(cut, tmp_path / "own")
    found = newest_checkpoint(tmp_path / "own")
    assert found is not None and found.name == whole.name


def test_a_crash_is_no_result_of_a_search(tmp_path: Path) -> None:
    """What the settings are to blame for is; the exit code of the sweep tells them apart."""
    for name, final in (("a", True), ("b", False), ("c", None)):
        trial = Trial(name, {}, "failed" if final is not None else "finished")
        trial.save(tmp_path / "round-2" if name == "b" else tmp_path)
    (tmp_path / "trials" / "a" / FAILURE).write_text('{"final": true}')
    assert [trial.name for trial in crashed_trials(tmp_path)] == ["b"]


@pytest.mark.parametrize(
    ("error", "final", "reason"),
    [
        (UserError("lr: too high"), True, "lr: too high"),
        (MemoryError(), True, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 TB"), True, "out of memory: "),
        (ValueError("a bug"), False, "ValueError: a bug"),
    ],
)
def test_a_failure_says_whether_it_would_come_again(
    tmp_path: Path, error: Exception, final: bool, reason: str
) -> None:
    _leave_reason(tmp_path, error)
    assert json.loads((tmp_path / FAILURE).read_text())["final"] is final
    assert _reason(tmp_path, RuntimeError("from Ray")).startswith(reason)
    if final:
        with pytest.raises(TrialFailed, match=reason):
            _refuse_hopeless(tmp_path)
    else:
        _refuse_hopeless(tmp_path)
        assert not (tmp_path / FAILURE).exists()


def test_the_rank_that_lost_another_does_not_speak(tmp_path: Path) -> None:
    _leave_reason(tmp_path, RuntimeError("Connection closed by peer [127.0.0.1]:1234"))
    assert not (tmp_path / FAILURE).exists()
    assert _reason(tmp_path, RuntimeError("Training failed:\nworker 1 died")) == "worker 1 died"


def test_only_a_complete_run_is_reported_without_training(tmp_path: Path) -> None:
    run: dict[str, Any] = {"status": "running", "metrics": {"eval/loss/sft": 1.0}, "seconds": 9}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert finished_report(tmp_path) is None
    (tmp_path / "run.json").write_text(json.dumps({**run, "status": "completed"}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 60}\n')
    report = finished_report(tmp_path)
    assert report is not None
    assert (report["loss/sft"], report["step"], report["finished"]) == (1.0, 60, True)


def test_a_trial_that_is_over_is_not_run_again(tmp_path: Path) -> None:
    """Whatever Ray believes, having been killed before it could write down the end."""
    trial = Trial("000", {}, "stopped", "asha", step=3, metrics={"accuracy": 0.5})
    trial.save(tmp_path)
    report = settled_report(tmp_path / "trials" / "000")
    assert report is not None
    assert (report["accuracy"], report["step"], report["finished"]) == (0.5, 3, False)
    trial.status, trial.why = "failed", "worker died"
    trial.save(tmp_path)
    with pytest.raises(TrialFailed, match="worker died"):
        settled_report(tmp_path / "trials" / "000")
    trial.status = "waiting"
    trial.save(tmp_path)
    assert settled_report(tmp_path / "trials" / "000") is None


def test_records_survive_and_broken_ones_are_left_out(tmp_path: Path) -> None:
    trial = Trial("000-a", {"lr": 1e-5}, status="stopped", why="asha", step=3)
    trial.take({"step": 4, "percent": 40.0, "accuracy": 0.5, "node_ip": "x"})
    trial.save(tmp_path)
    (tmp_path / "trials" / "broken").mkdir()
    (tmp_path / "trials" / "broken" / "trial.json").write_text("{")
    assert read_trials(tmp_path) == [trial]
    assert trial.metrics == {"accuracy": 0.5}


def test_ranking_knows_directions_and_gaps() -> None:
    values = {"a": 0.2, "b": 0.9, "c": float("nan"), "d": None}
    trials = [Trial(n, {}, metrics={} if v is None else {"accuracy": v}) for n, v in values.items()]
    assert [t.name for t in rank(trials, "accuracy", "max")][:2] == ["b", "a"]
    assert [t.name for t in rank(trials, "accuracy", "min")][:2] == ["a", "b"]


def test_the_best_trial_is_one_of_the_best_point() -> None:
    values = {"a": (0.9, 0.5, 0.5), "b": (0.8, 0.8, 0.7), "c": (float("nan"),)}
    trials = [
        Trial(f"{name}{seed}", {"lr": name, "seed": seed}, metrics={"accuracy": value})
        for name, some in values.items()
        for seed, value in enumerate(some)
    ]
    ranked = [trial.name for trial in rank_by_point(trials, "accuracy", "max")]
    assert ranked == ["b0", "b1", "b2", "a0", "a1", "a2", "c0"]


def test_a_trial_that_diverges_fails_at_once(tmp_path: Path) -> None:
    sweep = load_sweep({"space": {"lr": {"grid": [1e-6, 1]}}})
    _refuse_diverged({"step": 3, "accuracy": 0.5, "loss/sft": 2.0}, sweep, tmp_path)
    lost = {"step": 4, "accuracy": 0.0, "loss/sft": float("nan")}
    with pytest.raises(TrialFailed, match="diverged: loss/sft is nan at step 4"):
        _refuse_diverged(lost, sweep, tmp_path)
    with pytest.raises(TrialFailed, match="diverged"):
        _refuse_hopeless(tmp_path)
    assert math.isnan(evaluation_metrics({"eval/loss/sft": float("nan")})["perplexity"])


def test_weights_are_dropped_and_logs_stay(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 4)
    for name in ("model.safetensors", "metrics.jsonl", "run.json"):
        (tmp_path / name).write_text("{}")
    drop_weights(tmp_path, checkpoints_only=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.jsonl", "model.safetensors", "run.json",
    ]  # fmt: skip
    drop_weights(tmp_path, checkpoints_only=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "run.json"]


def test_reports_arrive_whole_and_once(tmp_path: Path) -> None:
    (tmp_path / ".reports-0.jsonl").write_text('{"step": 1}\n')  # of a trial that was killed
    reports = Reports(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [reports.path.name]
    assert reports.new() == []
    controller = pickle.loads(pickle.dumps(reports))  # noqa: S301 (as Ray does; made just here)
    controller.add({"step": 1, "loss": float("inf")})
    assert reports.new() == [{"step": 1, "loss": float("inf")}]
    with reports.path.open("a") as file:
        file.write('{"step"')
    assert reports.new() == []
    with reports.path.open("a") as file:
        file.write(": 2}\n")
    controller.add({"step": 3})
    assert reports.new() == [{"step": 2}, {"step": 3}]


def test_what_was_reported_is_passed_on_before_a_failure_is(tmp_path: Path) -> None:
    reports = Reports(tmp_path)

    def work() -> None:
        reports.add({"step": 1})
        raise TrialFailed("worker died")

    passed = []
    with pytest.raises(TrialFailed, match="worker died"):
        for report in _while_running(work, reports):
            passed.append(report)
    assert passed == [{"step": 1}]


pytest.importorskip("ray")


class FakeTrial(SimpleNamespace):
    """What the driver's callback asks of Ray's trial."""

    def __str__(self) -> str:
        return str(self.name)


@pytest.fixture
def live(tmp_path: Path) -> Any:
    from orpo_dist.sweeps.running.live import Live

    content = {
        "space": {"lr": {"grid": [1e-6, 1e-5, 1e-4]}}, "keep_models": 1,
        "scheduler": {"name": "asha"},
    }  # fmt: skip
    return Live(load_sweep(content), tmp_path)


def ray_trial(number: int, lr: float) -> FakeTrial:
    return FakeTrial(name=f"{number:03d}", config={"settings": {"lr": lr}}, get_error=lambda: None)


def test_the_driver_records_what_ray_tells_it_and_keeps_the_best(live: Any, tmp_path: Path) -> None:
    for number, (accuracy, finished) in enumerate([(0.6, True), (0.8, True), (0.7, False)]):
        trial = ray_trial(number, 10.0 ** (number - 6))
        live.on_trial_start(0, [], trial)
        folder = tmp_path / "trials" / trial.name
        make_checkpoint(folder, 5)
        (folder / "model.safetensors").write_text("x")
        result = {"step": 5, "percent": 50.0, "accuracy": accuracy, "finished": finished}
        live.on_trial_result(0, [], trial, result)
        live.on_trial_complete(0, [], trial)
    live = pickle.loads(pickle.dumps(live))  # noqa: S301 (as Ray does; it was made just here)
    assert {t.name: t.status for t in read_trials(tmp_path)} == {
        "000": "finished", "001": "finished", "002": "stopped",
    }  # fmt: skip
    assert read_trials(tmp_path)[2].why == "asha at step 5 (50 %), accuracy 0.7"
    kept = [path.parent.name for path in tmp_path.glob("trials/*/model.safetensors")]
    assert kept == ["001"] and not list(tmp_path.glob("trials/*/checkpoint-*"))
    live.on_trial_start(0, [], ray_trial(2, 1e-4))  # by a Ray that has forgotten its end
    assert read_trials(tmp_path)[2].status == "stopped"
    lost = ray_trial(3, 1e-5)
    live.on_trial_recover(0, [], lost)
    live.on_trial_start(0, [], lost)
    (record,) = (t for t in read_trials(tmp_path) if t.name == "003")
    assert (record.failures, record.status) == (1, "running")


def test_where_all_models_are_kept_a_finished_trial_keeps_no_checkpoints(
    live: Any, tmp_path: Path
) -> None:
    live.content["keep_models"] = "all"
    for number, finished in enumerate([True, False]):
        trial = ray_trial(number, 10.0 ** (number - 6))
        live.on_trial_start(0, [], trial)
        make_checkpoint(tmp_path / "trials" / trial.name, 5)
        (tmp_path / "trials" / trial.name / "model.safetensors").write_text("x")
        live.on_trial_result(0, [], trial, {"step": 5, "accuracy": 0.5, "finished": finished})
        live.on_trial_complete(0, [], trial)
    assert len(list(tmp_path.glob("trials/*/model.safetensors"))) == 2
    (stopped,) = tmp_path.glob("trials/*/checkpoint-*")
    assert stopped.parent.name == "001"  # may be gone on with by hand


def test_the_table_shows_what_runs_first_and_then_the_best(live: Any) -> None:
    from orpo_dist.sweeps.running.live import table

    trials = [
        Trial("000-lr=1e-06", {"lr": 1e-6}, "finished", step=9, metrics={"accuracy": 0.6}),
        Trial("001-lr=1e-05", {"lr": 1e-5}, "finished", step=9, metrics={"accuracy": 0.8}),
        Trial("002-lr=0.0001", {"lr": 1e-4}, "running", step=3, metrics={"accuracy": 0.1}),
        Trial("003-lr=0.001", {"lr": 1e-3}, "stopped", "asha at step 3", step=3),
    ]
    lines = table(trials, live.state.sweep)
    assert lines[0].split() == ["trial", "lr", "step", "accuracy", "status"]
    assert [line.split()[0] for line in lines[1:]] == ["002", "001", "000", "003"]
    assert lines[-1].endswith("stopped: asha at step 3")
    assert table(trials, live.state.sweep, most=4)[-1] == "… and 2 more"
