"""One packed sequence over several ranks: each holds an equal part of its tokens, and all heads.

Everything but attention looks at tokens one by one. Around attention two exchanges turn tokens into
heads and back: each rank then attends with its share of the heads over all tokens, by the code that
one rank would use. Ulysses (arXiv 2309.14509), over sequences that share their prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orpo_dist.engines.mesh import SequenceGroup

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Heads:
    """Heads of one rank: of queries and, as a range of its own, of the keys that these need."""

    queries: slice
    keys: slice

    @property
    def asking(self) -> int:
        return self.queries.stop - self.queries.start

    @property
    def asked(self) -> int:
        return self.keys.stop - self.keys.start


def shares(queries: int, keys: int, size: int) -> list[Heads]:
    """Heads of every rank, as even as they get. Keys that two ranks need go to both."""
    group = queries // keys
    ends = [rank * queries // size for rank in range(size + 1)]
    return [
        Heads(slice(a, b), slice(a // group, -(-b // group) if b > a else a // group))
        for a, b in pairwise(ends)
    ]


def over_heads(
    attend: Attend,
    here: SequenceGroup,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention to all tokens of the sequence, for this rank's tokens.

    query: (1, H, L, D); key: (1, H or fewer, L, D); value: (1, as key, L, E); of this rank's L
    tokens. sinks: (H,). attend: takes the same of all T tokens and some heads, returns
    (1, T, heads, E). Returns (1, L, H, E).
    """
    held = shares(query.shape[1], key.shape[1], here.size)
    mine = held[here.rank]
    queries, keys, values = _to_heads(here, held, query, key, value)
    if mine.asking == 0:  # fewer heads than ranks: still a part of the graph, for the way back
        output = values.transpose(1, 2)
    else:
        of_query = _keys_of(mine, query.shape[1] // key.shape[1])
        if of_query is not None:
            keys, values = keys[:, of_query], values[:, of_query]
        output = attend(queries, keys, values, None if sinks is None else sinks[mine.queries])
    return _to_tokens(here, held, output)


def _keys_of(mine: Heads, group: int) -> list[int] | None:
    """The key head of every query head, where they are not in equal groups as they lie."""
    first, last = mine.queries.start, mine.queries.stop
    if mine.asked == 1 or (first % group == 0 and last % group == 0):
        return None
    return [head // group - mine.keys.start for head in range(first, last)]


def _to_heads(
    here: SequenceGroup, held: list[Heads], query: Tensor, key: Tensor, value: Tensor
) -> list[Tensor]:
    """All heads of some tokens -> this rank's heads of all tokens; in one exchange."""
    parts = [[x[0, heads] for x, heads in _parts(one, query, key, value)] for one in held]
    given = [sum(part.numel() for part in of_rank) for of_rank in parts]
    sizes = [(part.shape[0], part.shape[2]) for part in parts[here.rank]]
    tokens = query.shape[2]
    numbers = [heads * tokens * width for heads, width in sizes]
    flat = torch.cat([part.flatten() for of_rank in parts for part in of_rank])
    taken = _exchange(here, flat, given, [sum(numbers)] * here.size)
    return [
        part.reshape(here.size, heads, tokens, width)
        .transpose(0, 1)
        .flatten(1, 2)[None]
        .to(x.dtype)
        for part, (heads, width), x in zip(
            taken.view(here.size, -1).split(numbers, 1), sizes, (query, key, value), strict=True
        )
    ]


def _parts(
    heads: Heads, query: Tensor, key: Tensor, value: Tensor
) -> tuple[tuple[Tensor, slice], ...]:
    return (query, heads.queries), (key, heads.keys), (value, heads.keys)


def _to_tokens(here: SequenceGroup, held: list[Heads], output: Tensor) -> Tensor:
    """This rank's heads of all tokens, (1, T, heads, E) -> all of its tokens, (1, L, H, E)."""
    _, tokens, heads, width = output.shape
    tokens //= here.size
    given = [tokens * heads * width] * here.size
    taken = [tokens * one.asking * width for one in held]
    parts = _exchange(here, output.flatten(), given, taken).split(taken)
    return torch.cat([part.view(tokens, -1, width) for part in parts if len(part)], 1)[None]


def _exchange(here: SequenceGroup, flat: Tensor, given: list[int], taken: list[int]) -> Tensor:
    """Pieces of ``given`` sizes, one for each rank -> the pieces that they have for this one."""
    return _Exchange.apply(flat, here, given, taken)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, here: SequenceGroup, given: list[int], taken: list[int]
    ) -> Tensor:
        ctx.back = here, taken, given
        output = flat.new_empty(sum(taken))
        dist.all_to_all_single(output, flat.contiguous(), taken, given, group=here.group)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchange.apply(grad, *ctx.back), None, None, None


def sum_over(here: SequenceGroup, values: Tensor) -> Tensor:
    """The sum over the ranks of a sequence; every rank goes on to compute the same from it.

    Each of them counts 1 / size of that (``PairScores.weight``), so that what all ranks have adds
    up; backward therefore takes its own part ``size`` times, which spares an exchange.
    """
    return values if here.size == 1 else _Sum.apply(values, here)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, here: SequenceGroup) -> Tensor:
        ctx.size = here.size
        total = values.clone()
        dist.all_reduce(total, group=here.group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.size * grad, None
