"""Dealing one step's pairs: to ranks so that none waits, to micro-batches so that each fits.

Indices into the step only; nothing here decides *which* pairs a step trains on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

EMPTY = -1  # a place in a table that holds no pair
SWAP_ROUNDS = 24
SWAP_COLUMNS = 32  # places of a rank that are considered for a swap


def attention_pairs(lengths: np.ndarray) -> np.ndarray:
    """(query, key) pairs of packed causal attention, (N,), from (N, 3) prompt, chosen, rejected."""
    prompt, chosen, rejected = lengths.astype(np.float64).T
    return (prompt + chosen) ** 2 / 2 + prompt * rejected + rejected**2 / 2


def packing_cost(lengths: np.ndarray, hidden_size: int) -> np.ndarray:
    """Work of each pair, (N,), in units of one token's work in the weights.

    A layer of width h spends about 24 h² FLOPs on a token and 4 h on each (query, key) pair.
    """
    return lengths.sum(1) + attention_pairs(lengths) / (6 * hidden_size)


def deal_to_ranks(costs: np.ndarray, ranks: int, places: int) -> list[list[int]]:
    """Balance n pairs over ranks, at most ``places`` each; costliest first within a rank.

    Rounds of costliest-to-least-loaded, then trades between heavy and light ranks, all at once.
    """
    order = np.argsort(-costs, kind="stable")
    if ranks == 1:
        return [order.tolist()]
    table = np.full((ranks, places), EMPTY)
    load = np.zeros(ranks)
    for place, at in enumerate(range(0, len(order), ranks)):
        some = order[at : at + ranks]
        lightest = np.argsort(load, kind="stable")[: len(some)]
        table[lightest, place] = some
        load[lightest] += costs[some]
    _swap(table, load, np.append(costs, 0.0))
    return [sorted(row[row != EMPTY].tolist(), key=lambda i: (-costs[i], i)) for row in table]


def _swap(table: np.ndarray, load: np.ndarray, costs: np.ndarray) -> None:
    """Even out in place: the k-th heaviest rank trades one pair with the k-th lightest.

    An empty place costs nothing (the last entry of ``costs``), so a trade with it is a move.
    """
    half = len(table) // 2
    for turn in range(SWAP_ROUNDS):
        if load.mean() > 0.998 * load.max():
            return
        by_load = np.argsort(load, kind="stable")
        heavy, light = by_load[::-1][:half], by_load[:half]
        # Other partners and places every round, or two ranks would be stuck with one another.
        light = np.roll(light, turn // 2)
        some = np.arange(turn, turn + SWAP_COLUMNS) % table.shape[1]
        some = some[: table.shape[1]]
        gain = costs[table[heavy][:, some]][:, :, None] - costs[table[light][:, some]][:, None, :]
        wanted = (load[heavy] - load[light])[:, None, None] / 2
        miss = np.abs(gain - wanted).reshape(half, -1)
        best = miss.argmin(1)
        give, take = np.divmod(best, len(some))
        moved = gain.reshape(half, -1)[np.arange(half), best]
        better = np.abs(moved - wanted[:, 0, 0]) < np.abs(wanted[:, 0, 0])
        heavy, light, moved = heavy[better], light[better], moved[better]
        give, take = some[give[better]], some[take[better]]
        table[heavy, give], table[light, take] = table[light, take], table[heavy, give]
        load[heavy] -= moved
        load[light] += moved


def deal_to_micro_batches(
    ranks: Sequence[Sequence[int]], sizes: np.ndarray, pairs: int, budget: float, padded: bool
) -> list[list[list[int]]]:
    """Cut every rank's pairs into equally many micro-batches, the fewest that fit.

    ranks: pairs of each rank, costliest first. sizes: (N,) tokens of each pair. A micro-batch holds
    at most ``pairs`` pairs and ``budget`` tokens; a pair over the budget stands alone. Where a rank
    has too few pairs, its last micro-batches are empty.
    """
    cut = _contiguous if padded else _even
    known = sizes.tolist()
    count = max(1, *(math.ceil(len(rank) / pairs) for rank in ranks))
    if not padded:  # a pair over the budget fills one micro-batch, not several
        full = [sum(min(known[i], budget) for i in rank) / budget for rank in ranks]
        count = max(count, math.ceil(max(full))) if budget < math.inf else count
    while True:
        dealt = [cut(rank, known, count, pairs, budget) for rank in ranks]
        if all(micro_batches is not None for micro_batches in dealt):
            return dealt  # type: ignore[return-value]
        count += 1


def _even(
    rank: Sequence[int], sizes: Sequence[int], count: int, pairs: int, budget: float
) -> list[list[int]] | None:
    """Packed: each pair to the micro-batch with the fewest tokens; None if one overflows."""
    bins: list[list[int]] = [[] for _ in range(count)]
    if count == 1:
        fits = len(rank) <= 1 or sum(sizes[i] for i in rank) <= budget
        return [list(rank)] if fits and len(rank) <= pairs else None
    tokens = [0] * count
    for pair in rank:
        open_bins = [k for k in range(count) if len(bins[k]) < pairs]
        if not open_bins:
            return None
        least = min(open_bins, key=tokens.__getitem__)
        if bins[least] and tokens[least] + sizes[pair] > budget:
            return None
        bins[least].append(pair)
        tokens[least] += sizes[pair]
    return [bins[k] for k in sorted(range(count), key=lambda k: -tokens[k])]


def _contiguous(
    rank: Sequence[int], sizes: Sequence[int], count: int, pairs: int, budget: float
) -> list[list[int]] | None:
    """Padded: neighbours in length together, because all are padded to the first of them."""
    per_bin = max(1, math.ceil(len(rank) / count))
    bins: list[list[int]] = []
    for pair in sorted(rank, key=lambda pair: -sizes[pair]):
        fits = bins and len(bins[-1]) < min(per_bin, pairs)
        if fits and sizes[bins[-1][0]] * (len(bins[-1]) + 1) <= budget:
            bins[-1].append(pair)
        else:
            bins.append([pair])
    if len(bins) > count:
        return None
    return bins + [[] for _ in range(count - len(bins))]
