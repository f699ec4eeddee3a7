"""One process of a trial: ``run.train`` as everywhere, its evaluations reported to Ray."""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from pathlib import Path
from typing import Any

from orpo_dist.base.console import set_up_logging
from orpo_dist.base.failure import LOST, rank_among_others
from orpo_dist.base.types import UserError
from orpo_dist.config import build_config
from orpo_dist.launch.accelerate import preset_environment
from orpo_dist.launch.presets import find
from orpo_dist.runs.lock import InUse
from orpo_dist.sweeps.protocol import Failure, write_placement
from orpo_dist.sweeps.searched.metrics import evaluation_metrics

logger = logging.getLogger("orpo_dist")

LOG = "log.txt"


def train_worker(task: dict[str, Any]) -> None:
    """Run in every worker of a Ray Train group. task: ``config`` (dict) and ``engine`` (preset).

    Leaves the reason of a failure in the run folder before it raises.
    """
    preset = find(task["engine"])
    if preset.engine.name == "single":
        _be_alone()
    os.environ.update(preset_environment(preset))
    set_up_logging()
    # A checkpoint that is reported is in its place: other trials may go on from it at once.
    config = build_config({**task["config"], "async_save": False})
    folder = Path(config.project_name)
    if not rank_among_others():
        _leave_place(folder)
    _log_to(folder / LOG)
    try:
        from orpo_dist.training.run import train  # reads the variables of the preset

        reporter = _reporter()
        handle = train(config, callbacks=[reporter])
        reporter.finish(handle.metrics)
    except BaseException as error:
        _leave_reason(folder, error)
        raise


def _be_alone() -> None:
    """Undo the process group of one that Ray has made: libraries would take it for several."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"):
        os.environ.pop(name, None)


def _leave_place(folder: Path) -> None:
    """Which placement group this is, for the driver to free when the trial is stopped."""
    import ray.util

    group = ray.util.get_current_placement_group()
    write_placement(folder, group.id.hex() if group else None)


def _leave_reason(folder: Path, error: BaseException) -> None:
    """For the trial: why, and whether it would happen again. Those who lost another keep quiet."""
    if any(word in str(error) for word in LOST):
        return
    first = next(iter(str(error).splitlines()), "")
    memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    reason = "out of memory" if memory else type(error).__name__
    if isinstance(error, UserError):
        reason = ""
    Failure(
        reason=": ".join(part for part in (reason, first) if part)[:500],
        final=memory or (isinstance(error, UserError) and not isinstance(error, InUse)),
        rank=rank_among_others() or 0,
        traceback="".join(traceback.format_exception(error)),
    ).save(folder)


def _log_to(path: Path) -> None:
    """Our lines of rank 0 also go into the trial's folder: Ray keeps its workers' output apart."""
    if rank_among_others():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.info("first worker on %s, process %d", socket.gethostname(), os.getpid())


def _reporter() -> Any:
    """The callback that reports every evaluation once its checkpoint is saved."""
    import ray.train
    from transformers import TrainerCallback

    from orpo_dist.training.callbacks import named_log

    class Reporter(TrainerCallback):
        def __init__(self) -> None:
            self.evaluated: dict[str, float] = {}
            self.place: dict[str, Any] = {}
            self.began = time.time()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.evaluated = evaluation_metrics(named_log(kwargs["metrics"]))
            self._note(state)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.evaluated and state.global_step < state.max_steps:  # the end is told by finish
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                self._report(checkpoint=str(checkpoint), finished=False)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._note(state)

        def _note(self, state: Any) -> None:
            self.place = {
                "step": state.global_step,
                "percent": 100 * state.global_step / max(1, state.max_steps),
            }

        def finish(self, metrics: dict[str, float]) -> None:
            self.evaluated = evaluation_metrics(metrics)
            self._report(checkpoint=None, finished=True)

        def _report(self, **more: Any) -> None:
            # All ranks have the same values; Ray waits for all of them.
            seconds = round(time.time() - self.began, 2)
            ray.train.report({**self.place, **self.evaluated, "seconds": seconds, **more})
            self.evaluated = {}

    return Reporter()
