"""How well a model tells chosen from rejected: accuracy, perplexity, margins, per category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from orpo_dist import runtime
from orpo_dist.allocator import keep_freed_memory
from orpo_dist.batching import FILLER, Plan
from orpo_dist.config import ORPOConfig
from orpo_dist.data import Encoder, PairDataset, columns_of, limits_of, prepare
from orpo_dist.handle import TrainedModel, load
from orpo_dist.intervals import wilson_interval
from orpo_dist.objective import log_odds_ratio
from orpo_dist.scoring import make_scorer
from orpo_dist.types import UserError


def score_dataset(
    model: Any,
    pairs: PairDataset,
    batch_size: int = 4,
    progress: bool = True,
    attention: str = "auto",
    token_budget: int | None = None,
) -> dict[str, np.ndarray]:
    """Score every pair once; arrays of shape (N,) in the order of ``pairs``.

    The processes of a launch share the pairs out, and all of them get all scores.
    chosen_logp, rejected_logp: mean log-prob per answer token. nll_sum: of the chosen answer.
    batch_size, token_budget: most pairs and tokens per forward pass.
    """
    here = runtime.start()
    names = ("chosen_logp", "rejected_logp", "nll_sum")
    scores = {name: np.zeros(len(pairs)) for name in names}
    scorer = make_scorer(model, attention)
    plan = Plan(
        pairs.lengths,
        pairs.lengths[:, 1],
        global_batch=batch_size * here.world_size,
        micro_batch=batch_size,
        world_size=here.world_size,
        token_budget=token_budget,
        padded=not scorer.packed,
    )
    model.eval()
    if model.device.type == "cpu":
        keep_freed_memory()
    shown = None if progress and here.is_main else True
    bar = tqdm(total=len(pairs), desc="scoring", unit=" pairs", disable=shown)
    with torch.no_grad(), bar:
        for step in plan.in_order(here.rank):
            for micro_batch in step.micro_batches:
                if micro_batch == (FILLER,):
                    continue
                indices = list(micro_batch)
                batch = scorer.collate([pairs[index] for index in indices]).to(model.device)
                found = scorer.score(model, batch)
                for name in names:
                    scores[name][indices] = getattr(found, name).double().cpu().numpy()
                bar.update(len(indices) * here.world_size)
    return {name: here.sum(values) for name, values in scores.items()}


def summarise(scores: dict[str, np.ndarray], nll_tokens: np.ndarray) -> dict[str, float | int]:
    """Accuracy with its interval, perplexity of the chosen answers, mean margin and log-odds."""
    chosen, rejected = scores["chosen_logp"], scores["rejected_logp"]
    correct = int((chosen > rejected).sum())
    low, high = wilson_interval(correct, len(chosen))
    log_odds = log_odds_ratio(torch.from_numpy(chosen), torch.from_numpy(rejected))
    return {
        "pairs": len(chosen),
        "preference_accuracy": correct / len(chosen),
        "accuracy_low": low,
        "accuracy_high": high,
        "perplexity": math.exp(min(700.0, scores["nll_sum"].sum() / nll_tokens.sum())),
        "mean_margin": float((chosen - rejected).mean()),
        "mean_log_odds": float(log_odds.mean()),
    }


def evaluate_model(
    model: TrainedModel | str | Path,
    data_path: str | Sequence[str],
    config: ORPOConfig | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Preference evaluation of a model on a file of pairs.

    model: a handle, a run folder or any model. config: data settings (columns, lengths, batch
    size); default: those of the run, so that training and evaluation cut alike.
    Returns ``preference_accuracy`` with ``accuracy_low``/``accuracy_high`` (95 % Wilson),
    ``perplexity``, ``mean_margin`` (nats per token), ``mean_log_odds``, ``pairs``, and the same
    per category under ``categories``; ``data`` is the data report. Raises ``UserError``.
    """
    handle = model if isinstance(model, TrainedModel) else load(model, config)
    config = config or handle.config
    pairs = load_pairs(handle, data_path, config, progress)
    budget = config.max_tokens_per_microbatch
    scores = score_dataset(
        handle.model,
        pairs,
        config.batch_size,
        progress,
        config.attention,
        budget if isinstance(budget, int) else None,
    )
    nll_tokens = pairs.lengths[:, 1]
    result: dict[str, Any] = summarise(scores, nll_tokens)
    result["categories"] = {}
    for number, name in enumerate(pairs.categories):
        mine = pairs.category_ids == number
        if name:
            part = {key: values[mine] for key, values in scores.items()}
            result["categories"][name] = summarise(part, nll_tokens[mine])
    result["data"] = pairs.report
    return result


def load_pairs(
    handle: TrainedModel, data_path: str | Sequence[str], config: ORPOConfig, progress: bool
) -> PairDataset:
    """The evaluation pairs, tokenised for the handle's model."""
    paths = [data_path] if isinstance(data_path, str) else list(data_path)
    if not paths:
        raise UserError("data_path is missing: pass --data-path FILE")
    limits = limits_of(config, handle.model.config)
    encoder = Encoder(handle.tokenizer, config.chat_template, limits)
    split = config.valid_split or config.train_split

    def load() -> PairDataset:
        return prepare(paths, encoder, columns_of(config), split, config.strict_data, progress)

    return runtime.start().main_first(load)


def format_evaluation(result: dict[str, Any]) -> str:
    """The result as a table for the terminal."""
    header = (
        f"{'':<20}{'pairs':>7}{'accuracy':>10}{'95 % interval':>18}{'perplexity':>12}{'margin':>9}"
    )
    rows = [header]
    parts = {"all": result, **result["categories"]}
    for name, part in parts.items():
        interval = f"{part['accuracy_low']:.3f} – {part['accuracy_high']:.3f}"
        rows.append(
            f"{name[:19]:<20}{part['pairs']:>7}{part['preference_accuracy']:>10.3f}"
            f"{interval:>18}{part['perplexity']:>12.2f}{part['mean_margin']:>+9.3f}"
        )
    return "\n".join(rows)
