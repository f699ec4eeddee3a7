"""One stage of a run, or a whole run that has no stages: data, trainer, training, saving."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orpo_dist.checkpoints.checkpoint import go_on_from
from orpo_dist.config import ORPOConfig
from orpo_dist.data import (
    Encoder,
    PairDataset,
    columns_of,
    held_out_paths,
    limits_of,
    make_encoder,
    prepare,
    template_text,
)
from orpo_dist.data.report import sentences
from orpo_dist.engines import runtime
from orpo_dist.engines.interruption import Interrupted, StopOnSignal
from orpo_dist.engines.runtime import Runtime
from orpo_dist.models.model import load_model_config, load_tokenizer
from orpo_dist.models.trained import TrainedModel
from orpo_dist.runs.changes import check_data
from orpo_dist.runs.folder import RunFolder, read_json, write_json
from orpo_dist.training.arguments import loggers
from orpo_dist.training.callbacks import AdviceLines, MetricsFile, Patience, named_log, tensorboard
from orpo_dist.training.difficulty import base_margins
from orpo_dist.training.merging import forget_merged, merge_in_place, open_merged
from orpo_dist.training.settled import settle
from orpo_dist.training.summary import derived_truth, settled_facts
from orpo_dist.training.trainer import ORPOTrainer

logger = logging.getLogger("orpo_dist")

GO_ON = "go on with the same command and --resume-from-checkpoint auto"


@dataclass(frozen=True)
class Place:
    """Where a stage stands: its number from 1, of how many, after how many steps of the others."""

    number: int
    of: int
    first_step: int

    def __str__(self) -> str:
        return f"stage {self.number} of {self.of}"


@dataclass(frozen=True)
class Stage:
    """run: the settings of the whole run; config: those of this stage; place: None if alone.

    asked: those of this stage as the user gave them.
    """

    run: ORPOConfig
    config: ORPOConfig
    folder: RunFolder
    asked: ORPOConfig
    place: Place | None = None

    @property
    def starts_from(self) -> str:
        """The model to begin with: the run's, or what the stage before has left."""
        if self.place is None or self.place.number == 1:
            return str(self.run.model)
        return str(self.folder.stage(self.place.number - 1).path)

    def train(
        self,
        checkpoint: Path | None,
        here: Runtime,
        stop: StopOnSignal,
        callbacks: Sequence[Any],
        trainer_class: type[ORPOTrainer],
    ) -> ORPOTrainer:
        """Train from the start or from a checkpoint of this stage; raises ``Interrupted``."""
        trainer = self._trainer(checkpoint, here, stop, callbacks, trainer_class)
        text = trainer.config.chat_template  # not its path: the run folder stands on its own
        whole = trainer.config if self.place is None else self.run.replace(chat_template=text)
        self.folder.write_config(whole)
        trainer.settle_budget()
        self._note_settled(trainer)
        own = self.folder if self.place is None else self.folder.stage(self.place.number)
        checkpoint = here.on_main(partial(own.go_on, checkpoint))
        logger.info("%s%s", f"{self.place}: " if self.place else "", derived_truth(trainer))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = trainer.state
        if stop.exit_code is not None and state.global_step < state.max_steps:
            where = f" in {self.place}" if self.place else ""
            raise Interrupted(
                f"stopped at step {state.global_step} of {state.max_steps}{where}; {GO_ON}",
                stop.exit_code,
            )
        self.folder.update_run(engine=runtime.running_engine(trainer.model_wrapped))  # seen
        return trainer

    def _note_settled(self, trainer: ORPOTrainer) -> None:
        """In run.json; of a staged run, each stage under its number."""
        facts = settled_facts(trainer)
        if self.place is not None:
            before = read_json(self.folder.run).get("settled", {}) if self.place.number > 1 else {}
            facts = {**before, f"stage {self.place.number}": facts}
        self.folder.update_run(settled=facts)

    def _trainer(
        self,
        checkpoint: Path | None,
        here: Runtime,
        stop: StopOnSignal,
        callbacks: Sequence[Any],
        trainer_class: type[ORPOTrainer],
    ) -> ORPOTrainer:
        from transformers import set_seed

        config = self.config
        set_seed(config.seed)
        if checkpoint is not None:
            config = go_on_from(checkpoint, config, here)
        config = config.replace(chat_template=template_text(config.chat_template))
        if self.place is not None:  # where its checkpoints go
            config = config.replace(project_name=str(self.folder.stage(self.place.number).path))
        has_eval = bool(config.valid_data_path or config.valid_split)
        tokenizer = load_tokenizer(str(self.run.model), config)
        settled = settle(config, self.starts_from, has_eval, here, tokenizer)
        config = settled.config
        train_pairs, eval_pairs = here.main_first(lambda: load_data(config, settled.encoder))
        here.require_same("training data", train_pairs.digest)
        if checkpoint is not None:
            compared = partial(check_data, checkpoint, config, train_pairs, eval_pairs)
            if other := here.on_main(compared):
                logger.warning("going on from %s with other %s", checkpoint, other)
        if config.curriculum == "margin":
            train_pairs.difficulty = -base_margins(config, train_pairs, here)
        _report_data(self.folder, train_pairs, eval_pairs, self.place)
        own = _callbacks(config, self.folder, stop, train_pairs.report, self.place)
        trainer = trainer_class(
            model=self.starts_from,
            args=config,
            train_dataset=train_pairs,
            eval_dataset=eval_pairs,
            callbacks=[*own, *callbacks],
            settled=settled,
        )
        trainer.asked = self.asked
        if self.place is not None:
            trainer.stage, trainer.first_step = self.place.number, self.place.first_step
        trainer.bad_steps.keep_in(self.folder.bad_steps, trainer.stage, trainer.first_step)
        return trainer

    def leave(self, trainer: ORPOTrainer, stop: StopOnSignal) -> int:
        """Save what the next stage begins with; returns the steps that were made."""
        assert self.place is not None
        trainer.save_model(str(self.folder.stage(self.place.number).path))
        steps = trainer.state.global_step
        if self.folder.writes:
            trainer.write_settings(self.folder.stage(self.place.number).path)
        self.folder.finish_stage(self.place.number, steps=steps, metrics=final_metrics(trainer))
        trainer.runtime.wait()
        if stop.exit_code is not None:
            raise Interrupted(f"stopped after {self.place}; {GO_ON}", stop.exit_code)
        return steps

    def finish(self, trainer: ORPOTrainer) -> TrainedModel:
        """Save the model of the run; a handle on it."""
        config = trainer.config if self.place is None else self.run
        path = self.folder.path
        trainer.save_model(str(path))  # before anything that could still be interrupted
        if self.folder.writes:
            forget_merged(path)
        metrics = final_metrics(trainer)
        model = _merged(trainer, config, path) if config.merge_adapter else trainer.model
        return TrainedModel(model, trainer.processing_class, config, path, metrics)


def load_encoder(model: str, config: ORPOConfig) -> tuple[Any, Encoder]:
    """The tokenizer of a run, and what turns its rows into tokens."""
    tokenizer = load_tokenizer(model, config)
    limits = limits_of(config, load_model_config(model, config))
    return tokenizer, make_encoder(tokenizer, config, limits)


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


def _report_data(
    folder: RunFolder, train: PairDataset, valid: PairDataset | None, place: Place | None
) -> None:
    """data_report.json, and what a person has to hear about the data."""
    if not folder.writes:
        return
    reports = {"train": train.report} | ({"valid": valid.report} if valid else {})
    leaked = leaked_pairs(train, valid) if valid else 0
    before: dict[str, Any] = {}
    if place is not None:
        reports = {f"stage {place.number}: {name}": report for name, report in reports.items()}
        before = read_json(folder.data_report) if place.number > 1 else {}
    write_json(folder.data_report, {**before, **reports, "leaked_pairs": leaked})
    skipped = {}
    for name, report in reports.items():
        for loud, sentence in sentences(report):
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
    config: ORPOConfig,
    folder: RunFolder,
    stop: StopOnSignal,
    data: dict[str, Any],
    place: Place | None,
) -> list[Any]:
    lines = MetricsFile(folder.metrics)
    if place is not None:
        lines = MetricsFile(folder.metrics, place.number, place.first_step)
    found: list[Any] = [lines, AdviceLines(folder.metrics, data), stop]
    if "tensorboard" in loggers(config):
        found += tensorboard(folder.tensorboard)
    if config.early_stopping_patience:
        found.append(Patience(config.early_stopping_patience, config.early_stopping_threshold))
    return found


def final_metrics(trainer: ORPOTrainer) -> dict[str, float]:
    """The last logged training metrics, and the evaluation of the model as it is kept.

    With ``merge_adapter`` that is the model before merging.
    """
    history = trainer.state.log_history
    if trainer.eval_dataset is not None:
        kept = trainer.state.best_global_step if trainer.config.keeps_best else None
        step = trainer.first_step + (trainer.state.global_step if kept is None else kept)
        if not any(entry["step"] == step and "eval_loss" in entry for entry in history):
            trainer.evaluate()
            step = trainer.first_step + trainer.state.global_step
        history = [e for e in history if "eval_loss" not in e or e["step"] == step]
    metrics: dict[str, float] = {}
    for entry in history:
        metrics.update(named_log(entry))
    for name in ("total_flos", "step", "epoch", "stage"):
        metrics.pop(name, None)
    return metrics


def _merged(trainer: ORPOTrainer, config: ORPOConfig, folder: Path) -> Any:
    """A plain model in place of the adapter in ``folder``; the model to answer with from now on.

    One process alone opens what was saved, on the device that the trained model has left; several
    keep their shards of the model before merging.
    """
    if config.quantization:
        logger.warning(
            "merge_adapter: trained on a base in %s, merged into its full-precision weights: the "
            "saved model answers a little differently, and this run's metrics are of the one "
            "before merging; 'orpo-dist evaluate' judges the saved one",
            config.quantization,
        )
    if trainer.runtime.world_size > 1:
        trainer.runtime.on_main(lambda: merge_in_place(folder, config))
        return trainer.model
    trainer.release()
    merge_in_place(folder, config)
    return open_merged(folder, config)
