"""Models on pairs and texts: every model alone, then against the first, pair by pair."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orpo_dist.base.types import UserError
from orpo_dist.batching.token_budget import asked_budget
from orpo_dist.config import ORPOConfig, build_config
from orpo_dist.data import PairDataset, columns_of, limits_of, make_encoder, prepare
from orpo_dist.engines import runtime
from orpo_dist.engines.runtime import Runtime
from orpo_dist.evaluation.paired import compare, holm, why_not_comparable
from orpo_dist.evaluation.perplexity import NO_TEXTS, TextSettings, text_perplexity
from orpo_dist.evaluation.scores import ScoreTable, refuse_nan, score_dataset
from orpo_dist.evaluation.statistics import headline, summarise
from orpo_dist.models.model import Known, locate, look_at
from orpo_dist.models.trained import LOADING, TrainedModel, loading_config, open_model, run_configs

# Of a model's own run, also where several are judged by the data settings of the first.
OWN = ("model", "model_revision", "chat_template", "trust_remote_code", "attention", *LOADING)


@dataclass(frozen=True)
class Judged:
    """A model's figures, and the pairs and scores behind them, if there were pairs."""

    result: dict[str, Any]
    pairs: PairDataset | None = None
    table: ScoreTable | None = None


def evaluate_model(
    model: TrainedModel | str | Path,
    data_path: str | Sequence[str],
    config: ORPOConfig | None = None,
    progress: bool = True,
    texts: TextSettings = NO_TEXTS,
    full_precision: bool = False,
) -> dict[str, Any]:
    """Preference evaluation of a model on a file of pairs, and perplexity on texts.

    model: a handle, a run folder or any model. config: data settings (columns, lengths, batch
    size); default: those of the run, so that training and evaluation cut alike. full_precision: as
    in ``load``.
    Returns ``preference_accuracy`` with ``accuracy_low``/``accuracy_high`` (95 % Wilson),
    ``perplexity``, ``mean_margin`` (nats per token), ``mean_log_odds``, ``pairs``, the same per
    category under ``categories``; the spread of ``margin`` and ``log_odds``, ``length_bias``,
    ``calibration``; ``texts``; ``data`` is the data report. Raises ``UserError``.
    """
    return judge(model, data_path, config, progress, texts, full_precision).result


def judge(
    model: TrainedModel | str | Path,
    data_path: str | Sequence[str],
    config: ORPOConfig | None = None,
    progress: bool = True,
    texts: TextSettings = NO_TEXTS,
    full_precision: bool = False,
) -> Judged:
    """``evaluate_model``, with the scores of the single pairs."""
    here, handle = runtime.start(), model if isinstance(model, TrainedModel) else None
    own = handle.config if handle else loading_config(str(model), config, full_precision)
    config, pairs = config or own, None
    if data_path or not texts.paths:  # before the weights, so that mistakes are told at once
        known = handle.known if handle else look_at(str(model), own)
        pairs = load_pairs(known, data_path, config, here, progress)
    handle = handle or open_model(str(model), own)
    read = {"texts": [text_perplexity(handle, path, texts, here, progress) for path in texts.paths]}
    if pairs is None:
        return Judged(read)
    table = score_dataset(
        handle.model,
        pairs,
        config.batch_size,
        progress,
        config.attention,
        asked_budget(config),
        here,
    )
    refuse_nan(table, handle.path)
    return Judged({**results(table, pairs), **read}, pairs, table)


def results(table: ScoreTable, pairs: PairDataset) -> dict[str, Any]:
    """The figures of a table of scores, overall and per category, and the data report."""
    found = summarise(table)
    found["categories"] = {
        name: headline(table.only(pairs.category_ids == number))
        for number, name in enumerate(pairs.categories)
        if name
    }
    found["data"] = pairs.report
    return found


def evaluate_models(
    models: Sequence[str],
    data_path: str | Sequence[str],
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    texts: TextSettings = NO_TEXTS,
    full_precision: bool = False,
) -> dict[str, Any]:
    """Evaluate models one after another, and each against the first, pair by pair.

    settings: of ``ORPOConfig``, over those of the first model's run, by which all are judged; chat
    template and attention stay each model's own. full_precision: as in ``load``; a model that
    another was trained from is loaded as that one. Returns ``models``, their results by name, and
    ``comparisons`` with exact McNemar p-values, adjusted for their number (``p_adjusted``, Holm),
    and intervals. A comparison that cannot be made holds only ``why_not``.
    """
    names = list(models)
    places = [locate(name) for name in names]
    twice = next((n for n, place in zip(names, places, strict=True) if places.count(place) > 1), "")
    if twice:
        raise UserError(f"model {twice}: is given twice")
    first: Judged | None = None
    configs = run_configs(names)
    found: dict[str, Any] = {"models": {}, "comparisons": []}
    for name, own in zip(names, configs, strict=True):
        config = shared_config(configs[0], own, settings)
        judged = judge(name, data_path, config, progress, texts, full_precision)
        found["models"][name] = judged.result
        if first is None:
            first = judged
        elif first.table is not None:
            found["comparisons"].append(
                {"first": names[0], "second": name, **_against(first, judged)}
            )
        _free_memory()
    tested = [entry for entry in found["comparisons"] if "p_value" in entry]
    for entry, p in zip(tested, holm([e["p_value"] for e in tested]), strict=True):
        entry["p_adjusted"] = p
    return found


def shared_config(
    first: ORPOConfig, own: ORPOConfig, settings: Mapping[str, Any] | None
) -> ORPOConfig:
    """The data settings of the first model's run, what belongs to a model itself, and flags."""
    kept = {name: getattr(own, name) for name in OWN}
    kept["mixed_precision"] = own.mixed_precision or first.mixed_precision
    # data_path of the command replaces the run's, and with it what belonged to that
    belonged = ("data_weights", "data_temperature", "curriculum", "valid_split")
    inherited = {**first.model_dump(), **kept, **dict.fromkeys(belonged)}
    return build_config({**inherited, **(settings or {})})


def _against(first: Judged, second: Judged) -> dict[str, Any]:
    assert first.table is not None and second.table is not None
    assert first.pairs is not None and second.pairs is not None
    if reason := why_not_comparable(first.pairs, second.pairs):
        return {"why_not": reason}
    return compare(first.table, second.table)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_pairs(
    known: Known,
    data_path: str | Sequence[str],
    config: ORPOConfig,
    here: Runtime,
    progress: bool,
) -> PairDataset:
    """The evaluation pairs, tokenised for the model of which so much is known."""
    paths = [data_path] if isinstance(data_path, str) else list(data_path)
    if not paths:
        raise UserError("data_path is missing: pass --data-path FILE")
    tokenizer, model_config, rows = known
    limits = limits_of(config, model_config, rows)
    encoder = make_encoder(tokenizer, config, limits)
    split = config.valid_split or config.train_split

    def load() -> PairDataset:
        return prepare(paths, encoder, columns_of(config), split, config.strict_data, progress)

    return here.main_first(load)
