"""One scorer for all ranks: agreed upon, and over sequences that several of them share.

Sharing is refused where it cannot be, and proved where it can.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.mesh import SequenceGroup
from orpo_dist.engines.runtime import Runtime, gather_as_one, gathered_while_used
from orpo_dist.scoring import proof
from orpo_dist.scoring.miniature import miniature
from orpo_dist.scoring.model_config import number_of
from orpo_dist.scoring.packed_forward import causal_model, needs_rows, teach_packing
from orpo_dist.scoring.scorer import Scorer, adopt_scorer, balancing, make_scorer
from orpo_dist.scoring.sequence import shares
from orpo_dist.scoring.switches import switches

logger = logging.getLogger("orpo_dist")


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def training_scorer(
    policy: Any, config: ORPOConfig, tokenizer: Any, sequence: SequenceGroup, here: Runtime
) -> Scorer:
    """How a run scores, on every rank: agreed upon, with the balance of experts where that is
    trained, over sequences that the group shares. Raises ``UserError`` for what cannot be."""
    scorer = agreed_scorer(policy, config, tokenizer, here)
    scorer = balancing(scorer, causal_model(policy), config.router_aux_loss_coef)
    return spread(scorer, policy, sequence, here)


def agreed_scorer(policy: Any, config: ORPOConfig, tokenizer: Any, here: Runtime) -> Scorer:
    """The same scorer on every rank, after a proof by rank 0; the rest as ``make_scorer``."""

    def make() -> Scorer:
        pad_id = tokenizer.pad_token_id or 0
        device = _gpu()
        dtype = HALVES.get(config.mixed_precision or "")
        return make_scorer(policy, config.attention, config.nll_scope, pad_id, device, dtype)

    if here.engine.name == "zero3":
        with gathered_while_used(policy):
            scorer = make()
        if scorer.packed:
            gather_as_one(causal_model(policy).get_output_embeddings())
        return scorer
    scorer = here.on_main(make)
    return scorer if here.is_main else adopt_scorer(policy, scorer)


def _gpu() -> torch.device | None:
    return torch.device("cuda") if torch.cuda.is_available() else None


def spread(scorer: Scorer, model: Any, sequence: SequenceGroup, here: Runtime) -> Scorer:
    """The scorer over sequences that this group shares; all ranks must call this.

    Proved on a miniature by the very processes that will do it: scores and gradients are those of
    one process. Raises ``UserError`` for a model whose layers need a whole sequence.
    """
    if sequence.size == 1:
        return scorer
    core = causal_model(model)
    reason = why_not_shared(scorer) or _unproved(core, sequence)
    reasons = [reason for reason in here.gather(reason) if reason]
    if reasons:
        raise UserError(
            f"sequence_parallel {sequence.size}: {type(core).__name__} {reasons[0]}; set it to 1"
        )
    _tell_heads(core, sequence.size)
    return replace(scorer, sequence=sequence)


def why_not_shared(scorer: Scorer) -> str | None:
    """Why a sequence cannot be shared under this way of scoring."""
    if not scorer.packed:
        return "is scored padded, and only packed sequences are shared"
    if scorer.rows:
        return "has layers with a state, which need every sequence whole"
    return None


def _tell_heads(core: Any, size: int) -> None:
    """Once, where ranks get unequal shares of attention."""
    heads = number_of(core.config.get_text_config(), "num_attention_heads")
    if heads is None or heads % size == 0:
        return
    each = [one.asking for one in shares(heads, heads, size)]
    logger.warning(
        "sequence_parallel %d: %d attention heads go to the ranks of a sequence as %s; the others "
        "wait for those with %d in every layer",
        size, heads, ", ".join(map(str, each)), max(each),
    )  # fmt: skip


def _unproved(core: Any, sequence: SequenceGroup) -> str | None:
    """Why shared sequences would be scored otherwise than whole ones; None if they are not."""
    with proof.undisturbed():
        small = miniature(core).to(_gpu() or "cpu")  # where the processes of a group can talk
        teach_packing(small)
        whole = Scorer(
            True, "prompt_and_completion", rows=needs_rows(small), switches=switches(small.config)
        )
        pairs = proof.some_pairs(small.config.get_text_config().vocab_size)
        found = []
        for scorer in (whole, replace(whole, sequence=sequence)):
            scores = scorer.score(small, scorer.collate(pairs).to(small.device))
            found.append(proof.measured(small, proof.packed_scores(scores)))
        (expected, slope), (scored, part) = found
        dist.all_reduce(part, group=sequence.group)
        part /= sequence.size  # each rank counts whole scores here, not its part of them
    return proof.apart_in_words(
        proof.scores_apart(scored, expected, pairs), proof.gradient_apart(part, slope), "shared"
    )
