"""One trial: what Ray Tune runs. It starts the workers, passes on their reports, explains failures.

A trial's truth is its run folder: whatever Ray has forgotten, a trial goes on from its newest
checkpoint, and one that is complete is not run again.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from orpo_dist.runs.folder import RunFolder, read_json, read_metrics
from orpo_dist.runs.lineage import unusable, whole_checkpoint
from orpo_dist.sweeps.protocol import (
    Failure,
    Place,
    Reports,
    folder_of,
    forget_failure,
    read_failure,
    read_place,
    read_trial,
)
from orpo_dist.sweeps.running.worker import train_worker
from orpo_dist.sweeps.searched.config import SweepConfig
from orpo_dist.sweeps.searched.metrics import evaluation_metrics
from orpo_dist.upstream.ray import lean_trainer, wait_for_machines

START = 600.0  # s; patience with machines that are busy or gone
STARTS = 5
PERIOD = 0.2  # s between two looks at what the workers have reported


class TrialFailed(RuntimeError):
    """Why a trial cannot be finished, in one sentence."""


def trainable(sweep: SweepConfig, project: Path, worker: dict[str, float]) -> Callable[..., None]:
    """The function that Ray Tune calls with the config of a trial. worker: resources of one."""

    def trial(config: dict[str, Any]) -> None:
        run_trial(config, sweep, project, worker)

    return trial


def run_trial(
    config: dict[str, Any], sweep: SweepConfig, project: Path, worker: dict[str, float]
) -> None:
    """Train the trial's run to its end, reporting to Tune; raises ``TrialFailed``."""
    from ray import tune

    name = tune.get_context().get_trial_name()
    folder = folder_of(project, name)
    _refuse_hopeless(folder)
    if done := settled_report(folder):
        tune.report(done)
        return
    _take_over(tune.get_checkpoint(), name, folder)
    settings = sweep.settings_of(config)
    task = {
        "config": sweep.run_config(settings, folder).model_dump(),
        "engine": sweep.engine_of(settings),
    }
    reports = Reports(folder)
    try:
        work = partial(_fit, task, sweep, worker, project, name, reports)
        for report in _while_running(work, reports):
            _refuse_diverged(report, sweep, folder)
            _to_tune(report, name)
    except Exception as error:
        raise TrialFailed(_reason(folder, error)) from error
    finally:
        reports.path.unlink()


def _refuse_hopeless(folder: Path) -> None:
    """A failure that would come again is not tried again; any other is forgotten."""
    if (failure := read_failure(folder)) and failure.final:
        raise TrialFailed(failure.reason)
    forget_failure(folder)


def _refuse_diverged(report: dict[str, Any], sweep: SweepConfig, folder: Path) -> None:
    """``TrialFailed`` at the first evaluation that is no number: no scheduler would stop it."""
    for metric in (*sweep.metrics, "loss/sft"):
        value = report.get(metric, 0.0)
        if not math.isfinite(value):
            reason = f"diverged: {metric} is {value} at step {report['step']}"
            Failure(reason, final=True).save(folder)
            raise TrialFailed(reason)


def settled_report(folder: Path) -> dict[str, Any] | None:
    """What a trial that is over has to report; None for one that has to train.

    A driver that was killed may have known of an end that Ray had not yet written down. Raises
    ``TrialFailed`` where that end was a failure.
    """
    if done := finished_report(folder):
        return done
    record = read_trial(folder)
    if record is None or not record.over:
        return None
    if record.status == "failed":
        raise TrialFailed(record.why)
    place = {"step": record.step, "percent": record.percent, "seconds": record.seconds}
    return {**record.metrics, **place, "finished": False}


def finished_report(folder: Path) -> dict[str, Any] | None:
    """What a complete run has to report; None for any other."""
    run = read_json(RunFolder(folder).run)
    if run.get("status") != "completed":
        return None
    log = read_metrics(RunFolder(folder).metrics)
    return {
        **evaluation_metrics(run.get("metrics", {})),
        "step": log[-1]["step"] if log else 0,
        "percent": 100.0,
        "seconds": run.get("seconds", 0.0),
        "finished": True,
    }


def _take_over(checkpoint: Any, name: str, folder: Path) -> None:
    """Where Tune gives this trial another one's checkpoint, go on from that."""
    if checkpoint is None:
        return
    with checkpoint.as_directory() as kept:
        place = read_place(Path(kept))
    if place is not None and place.trial != name:
        adopt(Path(place.checkpoint), folder)


def adopt(checkpoint: Path, folder: Path) -> None:
    """Make ``checkpoint`` the only one of a run folder; its newest whole neighbour if it is not.

    Files are linked where the file system can: they are written once and never changed.
    """
    if reason := unusable(checkpoint):
        newest = whole_checkpoint(checkpoint.parent)
        if newest is None:
            raise TrialFailed(f"{checkpoint}: {reason}, and none beside it is whole")
        checkpoint = newest
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".adopted"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(checkpoint, scratch, copy_function=_link)
    for own in folder.glob("checkpoint-*"):
        shutil.rmtree(own)
    scratch.rename(folder / checkpoint.name)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _fit(
    task: dict[str, Any],
    sweep: SweepConfig,
    worker: dict[str, float],
    project: Path,
    name: str,
    reports: Reports,
) -> None:
    """One attempt: fresh workers with a process group and a port of their own."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig

    class ToTrial(UserCallback):
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            reports.add(metrics[0])

    on_gpus = worker.get("GPU", 0) > 0
    wait_for_machines(START)
    lean_trainer(
        train_worker,
        train_loop_config=task,
        scaling_config=ScalingConfig(
            num_workers=sweep.workers_per_trial,
            use_gpu=on_gpus,
            resources_per_worker=worker,
            placement_strategy=sweep.placement,
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpus else "gloo"),
        run_config=RunConfig(
            name=f"train-{name}",
            storage_path=str(project / "ray"),
            callbacks=[ToTrial()],
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=STARTS),
        ),
    ).fit()


def _while_running(work: Callable[[], None], reports: Reports) -> Iterator[dict[str, Any]]:
    """Run ``work`` in a thread and yield what is reported meanwhile; raises what it raises."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    while thread.is_alive():
        yield from reports.new()
        thread.join(PERIOD)
    yield from reports.new()
    if failures:
        raise failures[0]


def _to_tune(report: dict[str, Any], name: str) -> None:
    """Report with a checkpoint that says where the trainer's own lies: it holds no weights."""
    from ray import tune

    path = report.pop("checkpoint")
    if path is None:
        tune.report(report)
        return
    with tempfile.TemporaryDirectory() as scratch:
        Place(name, path).save(Path(scratch))
        tune.report(report, checkpoint=tune.Checkpoint.from_directory(scratch))


def _reason(folder: Path, error: Exception) -> str:
    """What the worker that failed first has left, or what Ray knows of one that left nothing."""
    told = read_failure(folder)
    if told and told.reason:
        return told.reason
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
