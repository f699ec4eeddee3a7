"""The padded forward: both answers as full sequences, prompt and all, padded to the longest.

Slow and simple on purpose: it is the reference that every faster path must agree with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orpo_dist.types import Pair, PairScores


@dataclass(frozen=True)
class PaddedBatch:
    """B pairs as 2B sequences of L tokens, chosen first, padded on the right.

    input_ids, attention_mask: (2B, L). answer_mask: (2B, L) 1 on answer tokens, by position and
    never by comparing with the padding token. nll_mask: (B, L) 1 on the tokens of L_SFT in the
    chosen sequences. weight: (B,) 1 for real pairs, 0 for filler.
    """

    input_ids: Tensor
    attention_mask: Tensor
    answer_mask: Tensor
    nll_mask: Tensor
    weight: Tensor

    def to(self, device: torch.device | str) -> PaddedBatch:
        return PaddedBatch(
            **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        )


def pad_pairs(
    pairs: Sequence[Pair], nll_scope: str = "completion", pad_id: int = 0, real: bool = True
) -> PaddedBatch:
    """Collate pairs. pad_id: any valid token; it is masked wherever it stands.

    real: False makes every pair filler of weight 0.
    """
    sequences = [pair.prompt + pair.chosen for pair in pairs]
    sequences += [pair.prompt + pair.rejected for pair in pairs]
    shape = (len(sequences), max(map(len, sequences)))
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    answer_mask = torch.zeros(shape, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.tensor(sequence)
        attention_mask[row, : len(sequence)] = 1
        answer_mask[row, len(pairs[row % len(pairs)].prompt) : len(sequence)] = True
    whole = attention_mask[: len(pairs)].bool()
    return PaddedBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        answer_mask=answer_mask,
        nll_mask=whole if nll_scope == "prompt_and_completion" else answer_mask[: len(pairs)],
        weight=torch.full((len(pairs),), float(real)),
    )


def padded_scores(model: Any, batch: PaddedBatch) -> PairScores:
    """Score a padded batch with any causal language model of transformers."""
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits
    pairs = len(batch.weight)
    # Position t predicts token t + 1: the first token of a sequence is never predicted.
    targets = batch.input_ids[:, 1:]
    answers = batch.answer_mask[:, 1:]
    nll_mask = batch.nll_mask[:, 1:]
    wanted = answers.clone()
    wanted[:pairs] |= nll_mask
    precision = torch.promote_types(logits.dtype, torch.float32)
    logp = torch.zeros(targets.shape, dtype=precision, device=targets.device)
    logp[wanted] = -F.cross_entropy(
        logits[:, :-1][wanted].to(precision), targets[wanted], reduction="none"
    )
    mean = (logp * answers).sum(1) / answers.sum(1)
    return PairScores(
        chosen_logp=mean[:pairs],
        rejected_logp=mean[pairs:],
        nll_sum=-(logp[:pairs] * nll_mask).sum(1),
        nll_tokens=nll_mask.sum(1),
        weight=batch.weight,
    )
