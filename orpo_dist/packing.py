"""A micro-batch as one packed sequence, every prompt stored once and nothing padded.

A pair lies as ``[prompt][chosen][rejected]``. Positions of the rejected answer restart after the
prompt, and it attends to the prompt and itself, never to the chosen answer: each answer meets
exactly what it would meet alone. Prefix sharing as in arXiv 2410.20305.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from orpo_dist.types import Pair, PairScores
from orpo_dist.varlen import VarlenLayout, varlen_layout

# (prompt, chosen, rejected) lengths of each pair, in the order in which the pairs lie.
Segments = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class PackedBatch:
    """B pairs in one sequence of T tokens, S of which are predicted.

    input_ids, position_ids: (1, T). sources: (S,) where the hidden state lies that predicts a
    token; targets: (S,) that token. owners: (S,) row of the sum a token's log-prob goes to: b for
    the chosen answer of pair b, B + b for its rejected one, 2B + b for its prompt.
    answer_tokens: (2B,) lengths of the answers. nll_tokens: (B,). weight: (B,).
    varlen: where the sequences lie for a variable-length kernel, where one is to be used.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments
    sources: Tensor
    targets: Tensor
    owners: Tensor
    answer_tokens: Tensor
    nll_tokens: Tensor
    weight: Tensor
    varlen: VarlenLayout | None = None

    def to(self, device: torch.device | str) -> PackedBatch:
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | VarlenLayout)
        }
        return replace(self, **tensors)


def pack_pairs(
    pairs: Sequence[Pair], nll_scope: str = "completion", real: bool = True, varlen: bool = False
) -> PackedBatch:
    """Collate pairs. real: False makes every pair filler of weight 0. varlen: for that kernel."""
    with_prompt = nll_scope == "prompt_and_completion"
    tokens: list[int] = []
    positions: list[Tensor] = []
    sources: list[Tensor] = []
    targets: list[int] = []
    owners: list[int] = []
    count = len(pairs)
    for number, pair in enumerate(pairs):
        start, prompt = len(tokens), len(pair.prompt)
        tokens += pair.prompt + pair.chosen + pair.rejected
        positions.append(torch.arange(prompt + len(pair.chosen)))
        positions.append(torch.arange(prompt, prompt + len(pair.rejected)))
        last = start + prompt - 1  # the prompt's last token predicts the first of both answers
        rejected_start = start + prompt + len(pair.chosen)
        sources.append(torch.arange(last, last + len(pair.chosen)))
        sources.append(torch.tensor([last]))
        sources.append(torch.arange(rejected_start, rejected_start + len(pair.rejected) - 1))
        targets += pair.chosen + pair.rejected
        owners += [number] * len(pair.chosen) + [count + number] * len(pair.rejected)
        if with_prompt:
            sources.append(torch.arange(start, last))
            targets += pair.prompt[1:]
            owners += [2 * count + number] * (prompt - 1)
    segments = tuple((len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs)
    lengths = torch.tensor(segments)
    return PackedBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.cat(positions)[None],
        segments=segments,
        sources=torch.cat(sources),
        targets=torch.tensor(targets),
        owners=torch.tensor(owners),
        answer_tokens=torch.cat([lengths[:, 1], lengths[:, 2]]),
        nll_tokens=lengths[:, 1] + (lengths[:, 0] - 1) * with_prompt,
        weight=torch.full((count,), float(real)),
        varlen=varlen_layout(segments) if varlen else None,
    )


def gather_scores(batch: PackedBatch, logps: Tensor) -> PairScores:
    """Per-token log-probs (S,) -> per-pair scores."""
    count = len(batch.weight)
    sums = logps.new_zeros(3 * count).index_add(0, batch.owners, logps)
    chosen, rejected, prompt = sums.split(count)
    lengths = batch.answer_tokens.to(sums.dtype)
    return PairScores(
        chosen_logp=chosen / lengths[:count],
        rejected_logp=rejected / lengths[count:],
        nll_sum=-(chosen + prompt),
        nll_tokens=batch.nll_tokens,
        weight=batch.weight,
    )
