"""Candidates for near duplicates."""

from __future__ import annotations

import numpy as np

from orpo_dist.audit.near import candidates, candidates_between
from orpo_dist.audit.shingles import jaccard, shingle
from tests.unit.audit.texts import random_texts


def test_candidates_hold_what_is_similar_and_little_else() -> None:
    texts = random_texts(4000, seed=1)
    found = shingle(texts)
    left, right = np.arange(0, 4000, 2), np.arange(1, 4000, 2)
    similar = jaccard(found, left, found, right) >= 0.8
    pairs = candidates(found.signatures)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    met = set(map(tuple, pairs.tolist()))
    hits = [(i, i + 1) in met for i in left[similar].tolist()]
    assert len(hits) > 300 and np.mean(hits) > 0.99
    assert len(met) < 4 * 4000  # of eight million
    between = candidates_between(found.signatures[left], found.signatures[right])
    met = set(map(tuple, between.tolist()))
    hits = [(i, i) in met or any(a == i for a, _ in met) for i in np.flatnonzero(similar)]
    assert np.mean(hits) > 0.99


def test_a_bucket_of_many_costs_little() -> None:
    pairs = candidates(shingle(["the same text"] * 3000).signatures)
    assert len(pairs) < 2 * 3000
    assert set(pairs[:, 1].tolist()) == set(range(1, 3000))
