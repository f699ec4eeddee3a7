"""The padded forward: both answers as full sequences, prompt and all, padded to the longest.

Slow and simple on purpose: it is the reference that every faster path must agree with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orpo_dist.base.types import Pair, PairScores
from orpo_dist.scoring.parcel import Parcel, together
from orpo_dist.scoring.ragged import FlatPairs, runs
from orpo_dist.scoring.routing import balance
from orpo_dist.scoring.switches import Sides, Switch, padded_sides, sides_of, turning


@dataclass(frozen=True)
class PaddedBatch(Parcel):
    """B pairs as 2B sequences of L tokens, chosen first, padded on the right.

    input_ids, attention_mask: (2B, L). answer_mask: (2B, L) 1 on answer tokens, by position and
    never by comparing with the padding token. nll_mask: (B, L) 1 on the tokens of L_SFT in the
    chosen sequences. predicted: (2, S) row of each predicted token, column of the position that
    predicts it. weight: (B,) 1 for real pairs, 0 for filler. sides: who shares a rope, where ropes
    change with the length and not all are on one side.
    """

    input_ids: Tensor
    attention_mask: Tensor
    answer_mask: Tensor
    nll_mask: Tensor
    predicted: Tensor
    weight: Tensor
    sides: Sides | None = None


def pad_pairs(
    pairs: Sequence[Pair] | FlatPairs,
    nll_scope: str = "completion",
    pad_id: int = 0,
    real: bool = True,
    switches: tuple[Switch, ...] = (),
    pinned: bool = False,
) -> PaddedBatch:
    """Collate pairs. pad_id: any valid token; it is masked wherever it stands.

    real: False makes every pair filler of weight 0. switches: where the model's ropes change.
    pinned: in memory that a GPU copies by itself.
    """
    flat = FlatPairs.of(pairs)
    count = len(flat.lengths)
    (prompt, chosen, rejected), (start, _, answer) = flat.lengths.T, flat.starts.T
    with_chosen = runs(start, prompt + chosen)
    with_rejected = runs(np.stack([start, answer], 1), np.stack([prompt, rejected], 1))
    ends = np.concatenate([prompt + chosen, prompt + rejected])[:, None]
    columns = np.arange(ends.max())
    inside = columns < ends
    input_ids = np.full(inside.shape, pad_id, dtype=np.int64)
    input_ids[inside] = flat.tokens[np.concatenate([with_chosen, with_rejected])]
    answers = inside & (columns >= np.tile(prompt, 2)[:, None])
    nll = (inside if nll_scope == "prompt_and_completion" else answers)[:count]
    wanted = np.concatenate([answers[:count] | nll, answers[count:]])
    arrays = {
        "input_ids": input_ids,
        "attention_mask": inside.astype(np.int64),
        "answer_mask": answers,
        "nll_mask": nll,
        # Position t predicts token t + 1: the first token of a sequence is never predicted.
        "predicted": np.stack(np.nonzero(wanted[:, 1:])),
        "weight": np.full(count, real, dtype=np.float32),
    }
    turned = padded_sides(switches, ends[:, 0])
    tensors = together(arrays | {f"side_{name}": x for name, x in turned.items()}, pinned)
    fields = {name: tensors[name] for name in arrays}
    return PaddedBatch(**fields, sides=sides_of(turned, tensors))


def padded_scores(model: Any, batch: PaddedBatch, top_k: int | None = None) -> PairScores:
    """Score a padded batch with any causal language model of transformers.

    top_k: experts a token, where their balance is asked for.
    """
    asked = {} if top_k is None else {"output_router_logits": True}
    with turning(batch.sides):
        output = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **asked
        )
    logits, pairs = output.logits, len(batch.weight)
    targets = batch.input_ids[:, 1:]
    answers = batch.answer_mask[:, 1:]
    nll_mask = batch.nll_mask[:, 1:]
    rows, columns = batch.predicted
    precision = torch.promote_types(logits.dtype, torch.float32)
    logp = torch.zeros(targets.shape, dtype=precision, device=targets.device)
    logp[rows, columns] = -F.cross_entropy(
        logits[rows, columns].to(precision), targets[rows, columns], reduction="none"
    )
    mean = (logp * answers).sum(1) / answers.sum(1)
    return PairScores(
        chosen_logp=mean[:pairs],
        rejected_logp=mean[pairs:],
        nll_sum=-(logp[:pairs] * nll_mask).sum(1),
        nll_tokens=nll_mask.sum(1),
        weight=batch.weight,
        balance=None if top_k is None else _balance(output.router_logits, batch, top_k),
    )


def _balance(router_logits: tuple[Tensor, ...], batch: PaddedBatch, top_k: int) -> Tensor:
    pairs, length = len(batch.weight), batch.input_ids.shape[1]
    rows = torch.arange(pairs, device=batch.weight.device).repeat(2).repeat_interleave(length)
    return balance(router_logits, rows, batch.attention_mask.flatten(), pairs, top_k)
