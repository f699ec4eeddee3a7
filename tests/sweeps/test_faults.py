"""Sweeps that are killed, stopped, starved or robbed of a machine; minutes each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.runs.folder import read_metrics
from orpo_dist.sweeps.protocol import Trial, read_trials
from tests.launching import Process, curve, finish
from tests.sweeps.running import WORKER, done, ray_processes, run_of, sweep, trial_named, wait_until

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def interrupted_with(number: signal.Signals, file: Path, project: Path) -> tuple[Process, str, int]:
    """Stop a sweep once one trial is over and another has a checkpoint: it, errors, that step."""
    process = sweep(str(file))
    wait_until(lambda: half_way(project), process)
    os.kill(process.pid, number)
    errors = finish(process, 60)[2]
    step = max(t.step for t in read_trials(project) if not t.over)
    return process, errors, step


def half_way(project: Path) -> bool:
    trials = read_trials(project)
    return any(t.over for t in trials) and any(8 <= t.step <= 16 and not t.over for t in trials)


def resumed(file: Path, project: Path, step: int) -> None:
    """Go on; what was over is untouched, what was not goes on from its checkpoint, all end."""
    kept = {t.name: metrics_time(project, t) for t in read_trials(project) if t.over}
    assert kept
    half = next(t for t in read_trials(project) if not t.over and t.step == step)
    began = time.time()
    done(sweep(str(file), "--resume"))
    trials = read_trials(project)
    assert len(trials) == 4 and all(t.status == "finished" for t in trials)
    for trial in trials:
        if trial.name in kept:
            assert metrics_time(project, trial) == kept[trial.name]
    # No line is missing and none is there twice: what a trial has logged that nothing stopped.
    (whole, *_) = kept
    assert lines_of(project, half.name) == lines_of(project, whole)
    assert run_of(project, half)["started"] > began
    # A run that began anew would have evaluated at step 4 after the sweep went on.
    first = curve(project / "trials" / half.name, "eval/loss/sft")
    assert len(first) == 10


def lines_of(project: Path, name: str) -> list[tuple[int, bool]]:
    """The steps that a trial has logged, in order, and whether of an evaluation."""
    log = read_metrics(project / "trials" / name / "metrics.jsonl")
    return [(entry["step"], "eval/loss" in entry) for entry in log]


def metrics_time(project: Path, trial: Trial) -> float:
    return (project / "trials" / trial.name / "metrics.jsonl").stat().st_mtime


def gone(process: Process, word: str, seconds: float) -> bool:
    """Whether no such process of the sweep's Ray is left after ``seconds`` at most."""
    deadline = time.monotonic() + seconds
    while ray_processes(process, word):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


SPACE = {"orpo_alpha": {"grid": [0.1, 0.5, 1.0, 1.5]}}


def test_a_killed_driver_loses_nothing_that_is_finished(write_sweep: Any) -> None:
    file, project = write_sweep(SPACE)
    process, _, step = interrupted_with(signal.SIGKILL, file, project)
    assert process.returncode == -signal.SIGKILL
    assert gone(process, WORKER, 20)
    assert gone(process, "ray", 90)  # Ray's own agents take their time
    assert "running" in {t.status for t in read_trials(project)}  # nobody could say otherwise
    resumed(file, project, step)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGUSR1, 85)])
def test_a_signal_stops_a_sweep_that_can_go_on(
    write_sweep: Any, number: signal.Signals, code: int
) -> None:
    file, project = write_sweep(SPACE)
    process, errors, step = interrupted_with(number, file, project)
    assert process.returncode == code
    assert not ray_processes(process)
    assert "go on with the same command and --resume" in errors and "Traceback" not in errors
    assert "interrupted" in {t.status for t in read_trials(project)}
    assert (project / "report.html").exists()
    resumed(file, project, step)


def test_out_of_memory_is_a_failed_trial_with_its_reason(write_sweep: Any) -> None:
    """A LoRA matrix of a petabyte: the allocator refuses it as it would any other."""
    space = {"lora_r": {"grid": [8, 10_000_000_000_000]}}
    file, project = write_sweep(space, base={"peft": True}, steps=8)
    errors = done(sweep(str(file)))
    good, bad = (trial_named(project, number) for number in ("000", "001"))
    assert good.status == "finished"
    assert bad.status == "failed" and "out of memory" in bad.why
    assert "1 of 2 trials failed: 1 × out of memory" in errors


def test_a_trial_that_can_never_run_is_refused_at_once(write_sweep: Any) -> None:
    file, _ = write_sweep(SPACE)
    process = sweep(str(file), "--workers-per-trial", "64", "--global-batch-size", "128")
    code, _, errors = finish(process, 60)
    assert code == 2, errors
    assert "workers_per_trial 64: a trial needs 64 × (0.5 CPU)" in errors


def test_a_signal_before_the_first_trial_is_no_success(write_sweep: Any) -> None:
    file, project = write_sweep(SPACE)
    process = sweep(str(file), "--rounds", "2")
    assert process.stderr is not None
    next(line for line in process.stderr if "4 trials, 2 at once" in line)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    code, _, errors = finish(process, 60)
    assert code == 130, errors
    assert not (project / "round-2").exists()


def test_a_time_budget_interrupts_and_more_time_goes_on(write_sweep: Any) -> None:
    file, project = write_sweep(SPACE, steps=200)
    short = ("--time-budget", "35", "--max-concurrent-trials", "1")
    code, _, errors = finish(sweep(str(file), *short), 120)
    assert code == 1, errors  # nothing to take yet
    (first,) = read_trials(project)
    assert (first.status, first.why) == ("interrupted", "time budget of 35 s")
    assert "4 of 4 trials are not over (3 have not started)" in errors
    errors = done(sweep(str(file), "--resume", "--time-budget", "30m"))
    trials = read_trials(project)
    assert len(trials) == 4 and all(t.status == "finished" for t in trials)
    steps = sorted(curve(project / "trials" / first.name, "eval/loss/sft"))
    assert steps == list(range(4, 201, 4))  # each once: it went on from its checkpoint


def test_a_sweep_of_which_nothing_finishes_has_failed(write_sweep: Any) -> None:
    file, project = write_sweep(
        {"lr": {"grid": [1e30, 1e31]}}, steps=8, workers_per_trial=1,
        base={"warmup_ratio": 0.0, "max_grad_norm": 0.0},
    )  # fmt: skip
    code, _, errors = finish(sweep(str(file)), 200)
    assert code == 1 and "2 of 2 trials failed: 2 × diverged: loss/sft is" in errors
    assert all(t.status == "failed" and t.step < 8 for t in read_trials(project))


@pytest.mark.parametrize("engine", ["zero2", "fsdp2"])
def test_trials_run_on_other_engines(write_sweep: Any, engine: str) -> None:
    file, project = write_sweep({"orpo_alpha": {"grid": [0.1, 1]}}, steps=8)
    done(sweep(str(file), "--engine", engine))
    for trial in read_trials(project):
        assert trial.status == "finished"
        record = run_of(project, trial)
        assert (record["engine"], record["world_size"]) == (engine, 2)


def test_a_second_round_looks_closer_around_the_best(write_sweep: Any) -> None:
    space = {"orpo_alpha": {"grid": [0.0, 0.6]}}
    file, project = write_sweep(space, steps=8, workers_per_trial=1, keep_models=1)
    done(sweep(str(file), "--rounds", "2"))
    finer = read_trials(project / "round-2")
    assert finer and all(t.status == "finished" for t in finer)
    page = (project / "report.html").read_text()
    assert all(f"{t.settings['orpo_alpha']:g}" in page for t in finer)
    for folder in (project, project / "round-2"):
        assert len(list(folder.glob("trials/*/model.safetensors"))) == 1
        assert len(list(folder.glob("trials/*/metrics.jsonl"))) == len(read_trials(folder))


CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(node, allow_graceful=False)
    print("removed", flush=True)
"""


@pytest.fixture
def two_nodes() -> Iterator[subprocess.Popen[str]]:
    """A Ray cluster of two nodes; a line on its stdin takes one away. First line out: address."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)


def test_a_lost_machine_costs_its_trial_nothing_but_time(
    write_sweep: Any, two_nodes: subprocess.Popen[str]
) -> None:
    assert two_nodes.stdout is not None and two_nodes.stdin is not None
    address = next(line for line in two_nodes.stdout if ":" in line).strip()
    file, project = write_sweep({"orpo_alpha": {"grid": [0.1, 0.5, 1.0]}}, steps=60)
    process = sweep(str(file), RAY_ADDRESS=address)
    wait_until(lambda: sum(t.step >= 8 for t in read_trials(project)) == 2, process)
    two_nodes.stdin.write("\n")
    two_nodes.stdin.flush()
    done(process)
    trials = read_trials(project)
    assert len(trials) == 3 and all(t.status == "finished" for t in trials)
    assert sum(t.failures for t in trials) >= 1
    for trial in trials:
        assert len(curve(project / "trials" / trial.name, "eval/loss/sft")) == 15
