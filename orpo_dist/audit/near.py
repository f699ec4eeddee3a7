"""Locality-sensitive hashing: which of N signatures may be similar, without N² comparisons."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROWS = 4  # of a band; with 16 bands, texts of similarity 0.8 meet with probability 0.9998


def candidates(signatures: np.ndarray) -> np.ndarray:
    """(M, 2) pairs i < j that share a band.

    In a bucket each row is compared with the first and with the one before it, not with all: a
    cluster stays connected and a bucket of n rows costs 2n comparisons.
    """
    found = []
    for keys in _bands(signatures):
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        places = np.arange(len(order))
        first = np.maximum.accumulate(np.where(np.concatenate([[False], same]), 0, places))
        later = np.flatnonzero(same) + 1
        found += [order[near] * len(order) + order[later] for near in (later - 1, first[later])]
    return _unpack(found, len(signatures))


def candidates_between(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(M, 2) pairs (row of ours, row of theirs) that share a band; one of theirs per band."""
    found: list[np.ndarray] = []
    if len(theirs) == 0:
        return _unpack(found, 1)
    for mine, other in zip(_bands(ours), _bands(theirs), strict=True):
        keys, where = np.unique(other, return_index=True)
        place = np.minimum(np.searchsorted(keys, mine), len(keys) - 1)
        hits = np.flatnonzero(keys[place] == mine)
        found.append(hits * len(theirs) + where[place[hits]])
    return _unpack(found, len(theirs))


def _unpack(found: list[np.ndarray], width: int) -> np.ndarray:
    pairs = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
    return np.stack([pairs // width, pairs % width], 1)


def _bands(signatures: np.ndarray) -> Iterator[np.ndarray]:
    """For each band a key (N,) uint64 of its ``ROWS`` hashes."""
    for at in range(0, signatures.shape[1], ROWS):
        key = np.zeros(len(signatures), np.uint64)
        for column in signatures[:, at : at + ROWS].T:
            key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(29)
        yield key
