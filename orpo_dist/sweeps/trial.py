"""One trial: what Ray Tune runs. It starts the workers, passes on their reports, explains failures.

A trial's truth is its run folder: whatever Ray has forgotten, a trial goes on from its newest
checkpoint, and one that is complete is not run again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orpo_dist.folder import (
    RunFolder,
    is_complete,
    newest_checkpoint,
    read_json,
    read_metrics,
    write_json,
)
from orpo_dist.sweeps.config import SweepConfig
from orpo_dist.sweeps.metrics import evaluation_metrics
from orpo_dist.sweeps.worker import FAILURE, train_worker

PLACE = "place.json"  # in Ray's checkpoints: where the real one lies
START = 600.0  # s; patience with machines that are busy or gone
STARTS = 5


class TrialFailed(RuntimeError):
    """Why a trial cannot be finished, in one sentence."""


def trainable(sweep: SweepConfig, project: Path, worker: dict[str, float]) -> Callable[..., None]:
    """The function that Ray Tune calls with the config of a trial. worker: resources of one."""
    content, folder = sweep.model_dump(), str(project)

    def trial(config: dict[str, Any]) -> None:
        run_trial(config, SweepConfig.model_validate(content), Path(folder), worker)

    return trial


def run_trial(
    config: dict[str, Any], sweep: SweepConfig, project: Path, worker: dict[str, float]
) -> None:
    """Train the trial's run to its end, reporting to Tune; raises ``TrialFailed``."""
    from ray import tune

    name = tune.get_context().get_trial_name()
    folder = project / "trials" / name
    _refuse_hopeless(folder)
    if done := finished_report(folder):
        tune.report(done)
        return
    _take_over(tune.get_checkpoint(), name, folder)
    settings = sweep.settings_of(config)
    task = {
        "config": sweep.run_config(settings, folder).model_dump(),
        "engine": sweep.engine_of(settings),
    }
    inbox = _inbox()
    try:
        for report in _while_running(
            lambda: _fit(task, sweep, worker, project, name, inbox), inbox
        ):
            _to_tune(report, name)
    except Exception as error:
        raise TrialFailed(_reason(folder, error)) from error
    finally:
        inbox.shutdown(force=True)


def _refuse_hopeless(folder: Path) -> None:
    """A failure that would come again is not tried again; any other is forgotten."""
    failure = read_json(folder / FAILURE)
    if failure.get("final"):
        raise TrialFailed(str(failure["reason"]))
    (folder / FAILURE).unlink(missing_ok=True)


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
        place = read_json(Path(kept) / PLACE)
    if place and place["trial"] != name:
        adopt(Path(place["checkpoint"]), folder)


def adopt(checkpoint: Path, folder: Path) -> None:
    """Make ``checkpoint`` the only one of a run folder; its newest neighbour if it is gone.

    Files are linked where the file system can: they are written once and never changed.
    """
    while not is_complete(checkpoint):
        newest = newest_checkpoint(checkpoint.parent)
        if newest is None:
            raise TrialFailed(f"{checkpoint}: is gone, and so are all others beside it")
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


def _inbox() -> Any:
    from ray.util.queue import Queue

    return Queue(actor_options={"num_cpus": 0})


def _fit(
    task: dict[str, Any],
    sweep: SweepConfig,
    worker: dict[str, float],
    project: Path,
    name: str,
    inbox: Any,
) -> None:
    """One attempt: fresh workers with a process group and a port of their own."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            """Without the cleaner, which outlives the sweep: see ``live.free_placement``."""
            made = super()._create_default_callbacks()
            return [c for c in made if type(c).__name__ != "PlacementGroupCleanerCallback"]

    class ToTrial(UserCallback):
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            inbox.put(metrics[0])

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START)
    Trainer(
        train_worker,
        train_loop_config=task,
        scaling_config=ScalingConfig(
            num_workers=sweep.workers_per_trial,
            use_gpu=worker.get("GPU", 0) > 0,
            resources_per_worker=worker,
            placement_strategy=sweep.placement,
        ),
        torch_config=TorchConfig(timeout_s=12 * 3600),
        run_config=RunConfig(
            name=f"train-{name}",
            storage_path=str(project / "ray"),
            callbacks=[ToTrial()],
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=STARTS),
        ),
    ).fit()


def _while_running(work: Callable[[], None], inbox: Any) -> Iterator[dict[str, Any]]:
    """Run ``work`` in a thread and yield what arrives meanwhile; raises what it raises."""
    from ray.util.queue import Empty

    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    while True:
        over = not thread.is_alive()  # asked first, so that the last reports are not missed
        try:
            yield inbox.get(timeout=0.5)
        except Empty:
            if over:
                break
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
        write_json(Path(scratch) / PLACE, {"trial": name, "checkpoint": path})
        tune.report(report, checkpoint=tune.Checkpoint.from_directory(scratch))


def _reason(folder: Path, error: Exception) -> str:
    """What the worker that failed first has left, or what Ray knows of one that left nothing."""
    if told := read_json(folder / FAILURE).get("reason"):
        return str(told)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
