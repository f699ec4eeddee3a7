"""Ensembles on pairs of preferences: members, average, vote and best_of beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from orpo_dist.base.types import Pair, PairScores, UserError
from orpo_dist.batching.token_budget import asked_budget
from orpo_dist.config import ORPOConfig
from orpo_dist.data import PairDataset
from orpo_dist.engines import runtime
from orpo_dist.engines.runtime import ALONE, Runtime
from orpo_dist.ensembles.average import mix_logps
from orpo_dist.ensembles.choose import Criterion, log_odds
from orpo_dist.ensembles.ensemble import Ensemble, Method
from orpo_dist.evaluation.evaluate import load_pairs, results, shared_config
from orpo_dist.evaluation.paired import compare, holm, why_not_comparable
from orpo_dist.evaluation.scores import ScoreTable, refuse_nan, score_dataset, score_pairs
from orpo_dist.scoring.packing import PackedBatch, gather_scores

EVERYTHING = ("average", "vote", "best_of")


@dataclass(frozen=True)
class MemberScores:
    """Every member's pairs, as its own tokenizer cuts them, and its scores of them."""

    pairs: list[PairDataset]
    tables: list[ScoreTable]
    configs: list[ORPOConfig]


def evaluate_ensemble(
    ensemble: Ensemble,
    data_path: str | Sequence[str],
    methods: Sequence[Method] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Members and methods on the same pairs, each against the best member.

    methods: default, the ensemble's own. settings: of ``ORPOConfig``, over those of the first
    member's run. Returns what ``evaluate_models`` returns; vote and best_of are no distributions,
    so they have no perplexity. Raises ``UserError``.
    """
    here = runtime.start()
    ways = {m: replace(ensemble, method=m) for m in methods or [ensemble.method]}
    for member in ensemble.members:
        if member.name in EVERYTHING:
            raise UserError(f"member {member.name}: is the name of a method; say ./{member.name}")
    scored = score_members(ensemble, data_path, settings, here, progress)
    tables = dict(zip([m.name for m in ensemble.members], scored.tables, strict=True))
    best = max(tables, key=lambda name: tables[name].correct.mean())
    for method, one in ways.items():
        if method == "average":
            tables[method] = average_table(one, scored.pairs[0], scored.configs[0], here, progress)
        else:
            tables[method] = chosen_table(scored.tables, one.weights, method, one.criterion)
    found: dict[str, Any] = {
        "models": {name: results(table, scored.pairs[0]) for name, table in tables.items()},
        "comparisons": [
            {"first": best, "second": name, **compare(tables[best], table)}
            for name, table in tables.items()
            if name in EVERYTHING
        ],
    }
    adjusted = holm([entry["p_value"] for entry in found["comparisons"]])
    for entry, p in zip(found["comparisons"], adjusted, strict=True):
        entry["p_adjusted"] = p
    return found


def score_members(
    ensemble: Ensemble,
    data_path: str | Sequence[str],
    settings: Mapping[str, Any] | None,
    here: Runtime,
    progress: bool,
) -> MemberScores:
    """Score the pairs with every member; ``UserError`` if they do not all see the same pairs."""
    found = MemberScores([], [], [])
    first = ensemble.members[0].handle.config
    for member in ensemble.members:
        handle = member.ready()
        config = shared_config(first, handle.config, settings)
        pairs = load_pairs(handle.known, data_path, config, here, progress)
        if found.pairs and (reason := why_not_comparable(found.pairs[0], pairs)):
            raise UserError(f"members {ensemble.members[0].name} and {member.name}: {reason}")
        found.pairs.append(pairs)
        found.configs.append(config)
        found.tables.append(
            score_dataset(
                handle.model,
                pairs,
                config.batch_size,
                progress,
                config.attention,
                asked_budget(config),
                here,
            )
        )
        refuse_nan(found.tables[-1], member.name)
    return found


def average_table(
    ensemble: Ensemble,
    pairs: PairDataset,
    config: ORPOConfig,
    here: Runtime = ALONE,
    progress: bool = True,
) -> ScoreTable:
    """Scores of the averaged distribution.

    Averaged probabilities need only the members' log-probs of the targets, which the packed path
    gives; averaged logits need every logit, and take the padded path.
    """
    if ensemble.average_of == "logits" or not all(s.packed for s in ensemble.scorers):
        model = ensemble.averaged.model
        return score_dataset(model, pairs, config.batch_size, progress, "padded", here=here)
    scorer = ensemble.scorers[0]

    def score(some: list[Pair]) -> PairScores:
        batch = scorer.collate(some)
        assert isinstance(batch, PackedBatch)
        logps = list(_member_logps(ensemble, batch))
        mixed = mix_logps(logps, [member.weight for member in ensemble.members])
        return gather_scores(batch.to(mixed.device), mixed)

    budget = asked_budget(config)
    return score_pairs(score, pairs, scorer, config.batch_size, budget, here, progress)


def _member_logps(ensemble: Ensemble, batch: PackedBatch) -> Iterator[torch.Tensor]:
    """Every member's log-probs of the batch's targets, (S,) each."""
    for member in ensemble.members:
        model = member.ready().model.eval()
        there = batch.to(model.device)
        yield model(input_ids=there.input_ids, orpo_batch=there)


def chosen_table(
    tables: Sequence[ScoreTable], weights: np.ndarray, method: Method, criterion: Criterion
) -> ScoreTable:
    """What vote or best_of makes of pairs that every member has scored.

    vote by logp: means of log-probs; by odds: means of log odds. best_of by logp: the highest
    log-probs; by odds: those of the member with the strongest opinion on the pair.
    """
    sides = np.stack([[t.chosen_logp, t.rejected_logp] for t in tables])  # (M, 2, N)
    if method == "vote" and criterion == "logp":
        chosen, rejected = np.tensordot(weights, sides, 1)
    elif method == "vote":
        chosen, rejected = -np.logaddexp(0, -np.tensordot(weights, log_odds(sides), 1))
    elif criterion == "logp":
        chosen, rejected = sides.max(0)
    else:
        odds = log_odds(sides)
        surest = np.abs(odds[:, 0] - odds[:, 1]).argmax(0)
        chosen, rejected = sides[surest, :, np.arange(sides.shape[2])].T
    lengths = np.stack([tables[0].chosen_tokens * 0, tables[0].chosen_tokens,
                        tables[0].rejected_tokens], 1)  # fmt: skip
    nothing = np.full(len(chosen), np.nan)  # no distribution, no perplexity
    return ScoreTable.of(
        lengths,
        {
            "chosen_logp": np.ascontiguousarray(chosen),
            "rejected_logp": np.ascontiguousarray(rejected),
            "nll_sum": nothing,
        },
    )
