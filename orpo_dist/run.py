"""``train(config)``: the composition root, from a config to a run folder with a model in it."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from orpo_dist import runtime
from orpo_dist.advice import advise
from orpo_dist.arguments import loggers, resolve
from orpo_dist.callbacks import AdviceLines, MetricsFile, named_log, tensorboard
from orpo_dist.checkpoint import check_weights, go_on_from
from orpo_dist.compatibility import refuse_impossible
from orpo_dist.config import ORPOConfig
from orpo_dist.console import quieten_libraries
from orpo_dist.data import (
    Encoder,
    PairDataset,
    columns_of,
    held_out_paths,
    limits_of,
    prepare,
    template_text,
)
from orpo_dist.data.report import skip_sentence, truncation_sentences
from orpo_dist.folder import RunFolder, read_json, read_metrics, write_json
from orpo_dist.handle import TrainedModel
from orpo_dist.interruption import Interrupted, StopOnSignal
from orpo_dist.margins import base_margins
from orpo_dist.model import (
    load_model_config,
    load_tokenizer,
    locate,
    merged_model,
)
from orpo_dist.report import write_report
from orpo_dist.runtime import Runtime
from orpo_dist.trainer import ORPOTrainer
from orpo_dist.truth import derived_truth
from orpo_dist.types import UserError

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
    if config.model is None:
        raise UserError("model is missing: pass --model (a folder or a hub id)")
    if not config.data_path:
        raise UserError("data_path is missing: pass --data-path (a file, a folder or a hub id)")
    quieten_libraries()
    here = runtime.start()
    refuse_impossible(config, here.engine)
    config = config.replace(model=locate(config.model))
    folder = RunFolder(config.project_name, writes=here.is_main)
    checkpoint = here.on_main(lambda: folder.open(config))
    started = time.time()
    folder.update_run(
        status="running",
        started=started,
        versions=versions(),
        engine=here.engine.name,
        offload=here.engine.offload,
        world_size=here.world_size,
        error=None,
    )
    try:
        with StopOnSignal(here) as stop:
            handle = _train(config, folder, checkpoint, here, stop, callbacks, trainer_class)
    except torch.OutOfMemoryError as error:
        folder.update_run(status="failed", error=str(error))
        raise UserError(
            f"out of GPU memory ({str(error).splitlines()[0]}); set --max-tokens-per-microbatch, "
            "or try --gradient-checkpointing, --peft, --quantization int4"
        ) from error
    except BaseException as error:
        stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        folder.update_run(
            status="interrupted" if stopped else "failed",
            seconds=round(time.time() - started, 1),
            error=f"{type(error).__name__}: {error}",
        )
        raise
    data = read_json(folder.data_report).get("train")
    folder.update_run(
        status="completed",
        seconds=round(time.time() - started, 1),
        metrics=handle.metrics,
        advice=[str(advice) for advice in advise(read_metrics(folder.metrics), data)],
    )
    if here.is_main:
        write_report(folder.path)
    here.wait()
    return handle


def _train(
    config: ORPOConfig,
    folder: RunFolder,
    checkpoint: Path | None,
    here: Runtime,
    stop: StopOnSignal,
    callbacks: Sequence[Any],
    trainer_class: type[ORPOTrainer],
) -> TrainedModel:
    from transformers import set_seed

    assert config.model is not None
    name = config.model
    set_seed(config.seed)
    if checkpoint is not None:
        config = go_on_from(checkpoint, config, here)
    has_eval = bool(config.valid_data_path or config.valid_split)
    config = resolve(config, has_eval, here.world_size)
    # The text and not the path of a template: the run folder stands on its own.
    config = config.replace(chat_template=template_text(config.chat_template))
    tokenizer, encoder = load_encoder(name, config)
    train_pairs, eval_pairs = here.main_first(lambda: load_data(config, encoder))
    here.require_same("training data", train_pairs.digest)
    if config.curriculum == "margin":
        train_pairs.difficulty = -base_margins(config, train_pairs, here)
    _report_data(folder, train_pairs, eval_pairs)
    trainer = trainer_class(
        model=config.model,
        args=config,
        train_dataset=train_pairs,
        eval_dataset=eval_pairs,
        processing_class=tokenizer,
        callbacks=[*_callbacks(config, folder, stop, train_pairs.report), *callbacks],
    )
    config = trainer.config
    folder.write_config(config)
    assert trainer.train_plan is not None
    logger.info(derived_truth(trainer))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.exit_code is not None and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; go on with "
            "the same command and --resume-from-checkpoint auto",
            stop.exit_code,
        )
    folder.update_run(engine=runtime.running_engine(trainer.model_wrapped))  # seen, not asked
    trainer.save_model(str(folder.path))  # before anything that could still be interrupted
    metrics = final_metrics(trainer)
    if config.merge_adapter:
        _save_merged(trainer, config, folder)
    elif config.use_dora:
        logger.warning(
            "DoRA adapter: load it with PEFT (AutoPeftModelForCausalLM) or 'orpo-dist', or train "
            "with --merge-adapter; AutoModelForCausalLM of transformers drops DoRA's magnitudes"
        )
    return TrainedModel(trainer.model, tokenizer, config, folder.path, metrics)


def load_encoder(model: str, config: ORPOConfig) -> tuple[Any, Encoder]:
    """The tokenizer of a run, and what turns its rows into tokens."""
    tokenizer = load_tokenizer(model, config)
    limits = limits_of(config, load_model_config(model, config))
    return tokenizer, Encoder(tokenizer, config.chat_template, limits)


def load_data(config: ORPOConfig, encoder: Encoder) -> tuple[PairDataset, PairDataset | None]:
    """Training pairs, and evaluation pairs where the config names any."""
    train_pairs = prepare(
        config.data_path,
        encoder,
        columns_of(config, training=True),
        config.train_split,
        config.strict_data,
    )
    paths, split = held_out_paths(config)
    if not paths:
        return train_pairs, None
    return train_pairs, prepare(paths, encoder, columns_of(config), split, config.strict_data)


def _report_data(folder: RunFolder, train: PairDataset, valid: PairDataset | None) -> None:
    """data_report.json, and what a person has to hear about the data."""
    if not folder.writes:
        return
    reports = {"train": train.report} | ({"valid": valid.report} if valid else {})
    leaked = leaked_pairs(train, valid) if valid else 0
    write_json(folder.data_report, {**reports, "leaked_pairs": leaked})
    skipped = {}
    for name, report in reports.items():
        if sentence := skip_sentence(report):
            logger.warning("%s data: %s", name, sentence)
        for loud, sentence in truncation_sentences(report):
            logger.log(logging.WARNING if loud else logging.INFO, "%s data: %s", name, sentence)
        skipped[name] = {reason: entry["count"] for reason, entry in report["skipped"].items()}
    if leaked:
        logger.warning(
            "valid data: %d of %d pairs are also in the training data", leaked, len(valid or [])
        )
    folder.update_run(skipped=skipped)


def leaked_pairs(train: PairDataset, valid: PairDataset) -> int:
    """How many evaluation pairs stand, token for token, in the training data."""

    def keys(dataset: PairDataset) -> list[int]:
        pairs = (dataset[index] for index in range(len(dataset)))
        return [hash((tuple(p.prompt), tuple(p.chosen), tuple(p.rejected))) for p in pairs]

    known = set(keys(train))
    return sum(key in known for key in keys(valid))


def _callbacks(
    config: ORPOConfig, folder: RunFolder, stop: StopOnSignal, data: dict[str, Any]
) -> list[Any]:
    from transformers import EarlyStoppingCallback

    found: list[Any] = [MetricsFile(folder.metrics), AdviceLines(folder.metrics, data), stop]
    if "tensorboard" in loggers(config):
        found.append(tensorboard(folder.tensorboard))
    if config.early_stopping_patience:
        found.append(
            EarlyStoppingCallback(config.early_stopping_patience, config.early_stopping_threshold)
        )
    return found


def final_metrics(trainer: ORPOTrainer) -> dict[str, float]:
    """The last logged training metrics, and the evaluation of the model as it is kept.

    With ``merge_adapter`` that is the model before merging.
    """
    history = trainer.state.log_history
    if trainer.eval_dataset is not None:
        kept = trainer.state.best_global_step if trainer.config.keeps_best else None
        step = trainer.state.global_step if kept is None else kept
        if not any(entry["step"] == step and "eval_loss" in entry for entry in history):
            trainer.evaluate()
            step = trainer.state.global_step
        history = [e for e in history if "eval_loss" not in e or e["step"] == step]
    metrics: dict[str, float] = {}
    for entry in history:
        metrics.update(named_log(entry))
    for name in ("total_flos", "step", "epoch"):
        metrics.pop(name, None)
    return metrics


def _save_merged(trainer: ORPOTrainer, config: ORPOConfig, folder: RunFolder) -> None:
    """A plain model in place of the saved adapter."""

    def merge() -> None:
        merged = merged_model(folder.path, config)
        merged.save_pretrained(folder.path)
        check_weights(folder.path, merged)
        for adapter_file in folder.path.glob("adapter_*"):
            adapter_file.unlink()
        if trainer.runtime.world_size == 1:
            trainer.model = trainer.model_wrapped = merged.to(trainer.args.device)

    trainer.runtime.on_main(merge)


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
