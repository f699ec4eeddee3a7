"""What a model says about pairs when it sees one answer at a time: no padding, no neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orpo_dist.base.types import Pair, PairScores

# (prompt, chosen, rejected) tokens: within every window of a tiny config, and far beyond.
SHORT = ((5, 4, 7), (3, 6, 2), (1, 2, 3))
LONG = ((40, 37, 30), (4, 50, 21), (30, 3, 45))

LOGP, GRADIENT = 1e-4, 2e-3  # nats a token, share of the gradient's norm: more is wrong


def random_pairs(lengths: tuple[tuple[int, int, int], ...], words: int, seed: int) -> list[Pair]:
    """Pairs of tokens that are no special ones."""
    draw = torch.Generator().manual_seed(seed)
    return [
        Pair(*(torch.randint(3, words, (n,), generator=draw).tolist() for n in sizes))
        for sizes in lengths
    ]


def one_by_one(model: Any, pairs: list[Pair]) -> Tensor:
    """Mean log-prob of chosen and rejected answers, NLL of prompt and chosen, a token: (3, B)."""
    rows = []
    for pair in pairs:
        chosen, rejected = (
            _logps(model, pair.prompt + answer) for answer in (pair.chosen, pair.rejected)
        )
        means = chosen[-len(pair.chosen) :].mean(), rejected[-len(pair.rejected) :].mean()
        rows.append(torch.stack([*means, -chosen.mean()]))
    return torch.stack(rows, 1)


def _logps(model: Any, tokens: list[int]) -> Tensor:
    ids = torch.tensor([tokens])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def together(scores: PairScores, pairs: list[Pair]) -> Tensor:
    """The same of a scored micro-batch, under the scope prompt_and_completion."""
    counts = torch.tensor([len(pair.prompt) + len(pair.chosen) - 1 for pair in pairs])
    return torch.stack([scores.chosen_logp, scores.rejected_logp, scores.nll_sum / counts])


def with_gradient(model: Any, scores: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores, and the gradient of a sum in which every one of them counts differently."""
    model.zero_grad()
    weights = torch.linspace(1, 2, scores.numel()).view_as(scores)
    (weights * scores * torch.tensor([[1.0], [-0.7], [0.3]])).sum().backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return scores.detach(), gradient


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """How far gradients are from each other, as a share; one that is missing counts as zero."""
    difference = total = 0.0
    for name in one.keys() | other.keys():
        left, right = (side.get(name, torch.zeros(())).double() for side in (one, other))
        difference += float((left - right).square().sum())
        total += float(right.square().sum())
    return (difference / total) ** 0.5 if total else difference**0.5
