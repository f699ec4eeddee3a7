"""``train(config)``: the composition root, from a config to a run folder with a model in it."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orpo_dist.base.console import quieten_libraries
from orpo_dist.base.storage import quiet_writers, storage_failure
from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig, require_config
from orpo_dist.engines import runtime
from orpo_dist.engines.compatibility import refuse_impossible
from orpo_dist.engines.interruption import Interrupted, StopOnSignal
from orpo_dist.engines.runtime import Runtime
from orpo_dist.models.adapters import going_on, say_going_on
from orpo_dist.models.model import locate
from orpo_dist.models.trained import TrainedModel, run_config
from orpo_dist.runs.advice import advise
from orpo_dist.runs.changes import check_changes
from orpo_dist.runs.folder import RunFolder, read_json, read_metrics, training_data
from orpo_dist.runs.lineage import newest_checkpoint, stage_of
from orpo_dist.runs.lock import held
from orpo_dist.runs.report import write_report
from orpo_dist.training.card import write_card
from orpo_dist.training.stage import Place, Stage
from orpo_dist.training.trainer import ORPOTrainer
from orpo_dist.training.watch import Watch
from orpo_dist.upstream import check
from orpo_dist.upstream.accelerate import forget_engine

logger = logging.getLogger("orpo_dist")


def train(
    config: ORPOConfig,
    callbacks: Sequence[Any] = (),
    trainer_class: type[ORPOTrainer] = ORPOTrainer,
) -> TrainedModel:
    """Fine-tune ``config.model`` with ORPO on ``config.data_path`` into a run folder.

    callbacks: more of transformers' ``TrainerCallback``, after the run's own.
    trainer_class: a subclass with another ``compute_objective``, say.

    Called in every process that a launcher started; rank 0 alone writes the folder. Returns a
    handle on the trained model (on the engine's shards of it, where weights are sharded).
    Raises ``UserError`` for what the user can mend, and ``Interrupted`` after Ctrl-C, SIGTERM or
    SIGUSR1, with a checkpoint saved.
    """
    require_config(config)
    quieten_libraries()
    here = runtime.start()
    check("hf_trainer")
    asked, config = config, _checked(config, here)
    if changed := here.on_main(lambda: check_changes(asked, here.world_size)):
        logger.info(changed)
    folder = RunFolder(config.project_name, writes=here.is_main)
    with contextlib.ExitStack() as stack:
        here.on_main(lambda: stack.enter_context(held(folder.path)))
        return _train_in(folder, config, asked, here, callbacks, trainer_class)


def _train_in(
    folder: RunFolder,
    config: ORPOConfig,
    asked: ORPOConfig,
    here: Runtime,
    callbacks: Sequence[Any],
    trainer_class: type[ORPOTrainer],
) -> TrainedModel:
    """``train`` in a folder that is this run's alone."""
    checkpoint = here.on_main(lambda: folder.open(config))
    started = time.time()
    try:
        with StopOnSignal(here) as stop, quiet_writers(folder.path):
            _note_start(folder, here, started)
            with Watch(folder, here, config.hang_timeout) as watch:
                seen = [watch, *callbacks]
                handle = _train(config, asked, folder, checkpoint, here, stop, seen, trainer_class)
            _conclude(folder, handle, here, started)
    except BaseException as error:
        _note_end(folder, error, started)
        if isinstance(error, torch.OutOfMemoryError):
            raise UserError(
                f"out of GPU memory ({str(error).splitlines()[0]}); set "
                "--max-tokens-per-microbatch, or try --gradient-checkpointing, --peft, "
                "--quantization int4"
            ) from error
        if isinstance(error, Exception) and (reason := storage_failure(error, folder.path)):
            raise UserError(_cannot_write(folder, reason)) from error
        raise
    return handle


def _note_start(folder: RunFolder, here: Runtime, started: float) -> None:
    folder.update_run(
        status="running",
        started=started,
        versions=versions(),
        engine=here.engine.name,
        offload=here.engine.offload,
        world_size=here.world_size,
        error=None,
    )


def _conclude(folder: RunFolder, handle: TrainedModel, here: Runtime, started: float) -> None:
    """What is written of a run that is done; the model is."""
    advice = advise(read_metrics(folder.metrics), training_data(read_json(folder.data_report)))
    folder.update_run(
        status="completed",
        seconds=round(time.time() - started, 1),
        skipped_steps=len(read_metrics(folder.bad_steps)),
        metrics=handle.metrics,
        advice=[str(one) for one in advice],
    )
    if here.is_main:
        write_report(folder.path)
        write_card(folder.path)
    here.wait()


def _note_end(folder: RunFolder, error: BaseException, started: float) -> None:
    """Of a run that is not: run.json, whatever the state of the disk."""
    stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
    if storage_failure(error, folder.path):
        folder.drop_unfinished()  # makes room, too
    folder.update_run(
        at_all_costs=True,
        status="interrupted" if stopped else "failed",
        seconds=round(time.time() - started, 1),
        skipped_steps=len(read_metrics(folder.bad_steps)),
        error=f"{type(error).__name__}: {error}",
    )


def _cannot_write(folder: RunFolder, reason: str) -> str:
    saved = newest_checkpoint(folder.path)
    kept = f"{saved.name} is whole" if saved else "no checkpoint was saved before"
    return (
        f"project_name {folder.path}: cannot be written to any more ({reason}); {kept}: make "
        "room and go on with the same command and --resume-from-checkpoint auto"
    )


def _checked(config: ORPOConfig, here: Runtime) -> ORPOConfig:
    """The config with what its model says of it; ``UserError`` for what cannot be trained."""
    if config.model is None:
        raise UserError("model is missing: pass --model (a folder or a hub id)")
    for stage in config.stage_configs():
        if not stage.data_path:
            raise UserError("data_path is missing: pass --data-path (a file, a folder or a hub id)")
        refuse_impossible(stage, here.engine)
    config = going_on(config.replace(model=locate(config.model)))
    say_going_on(config, run_config(str(config.model)).quantization)
    if RunFolder(config.project_name).path.resolve() == Path(str(config.model)):
        raise UserError(
            f"project_name {config.project_name}: is the folder of the model to begin with; "
            "choose another name"
        )
    return config


def _train(
    run: ORPOConfig,
    asked: ORPOConfig,
    folder: RunFolder,
    checkpoint: Path | None,
    here: Runtime,
    stop: StopOnSignal,
    callbacks: Sequence[Any],
    trainer_class: type[ORPOTrainer],
) -> TrainedModel:
    """Every stage that is not done yet; a run without stages is one."""
    configs, given = run.stage_configs(), asked.stage_configs()
    finished = folder.finished_stages()
    number = _first_stage(run, checkpoint, len(finished))
    if run.stages and checkpoint and stage_of(checkpoint) != number:
        checkpoint = None  # of a stage that is done
    steps = [int(stage["steps"]) for stage in finished[: number - 1]]
    while True:
        place = Place(number, len(configs), sum(steps)) if run.stages else None
        stage = Stage(run, configs[number - 1], folder, given[number - 1], place)
        if place:
            here.on_main(partial(folder.begin_stage, number, checkpoint))
        trainer = stage.train(checkpoint, here, stop, callbacks, trainer_class)
        if number == len(configs):
            return stage.finish(trainer)
        steps.append(stage.leave(trainer, stop))
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        forget_engine()
        number, checkpoint = number + 1, None


def _first_stage(run: ORPOConfig, checkpoint: Path | None, finished: int) -> int:
    """The number of the stage to begin or to go on with; ``UserError`` if it is not in the run."""
    stages = len(run.stages or [])
    written = stage_of(checkpoint) if checkpoint else 0
    if checkpoint and (written > stages or bool(written) != bool(stages)):
        where = f"in stage {written}" if written else "by a run without stages"
        raise UserError(
            f"resume_from_checkpoint {checkpoint}: was written {where}, and these settings have "
            f"{stages or 'no'} stages; give those it was trained with"
        )
    if not stages:
        return 1
    if checkpoint and run.resume_from_checkpoint != "auto":
        return written  # back to there
    return min(max(written, finished + 1), stages)


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    names = ("orpo_dist", "torch", "transformers", "accelerate", "peft", "datasets")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found
