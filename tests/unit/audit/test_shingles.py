"""Word triples and their signatures, beside Python's sets."""

from __future__ import annotations

import re

import numpy as np
import pytest

from orpo_dist.audit.shingles import SIGNATURE, jaccard, shingle
from tests.unit.audit.texts import random_texts


def by_sets(left: str, right: str) -> float:
    """Jaccard similarity of word triples, with Python's sets."""
    sets = []
    for text in (left, right):
        words = [*re.findall(r"\w+|[^\w\s]", text.lower()), "\0", "\0"]
        sets.append(set(zip(words, words[1:], words[2:], strict=False)))
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_similarity_is_that_of_sets_of_word_triples() -> None:
    texts = random_texts(400)
    left, right = np.arange(0, 400, 2), np.arange(1, 400, 2)
    found = jaccard(shingle(texts), left, shingle(texts), right)
    expected = [by_sets(texts[i], texts[j]) for i, j in zip(left, right, strict=True)]
    assert found == pytest.approx(expected)
    assert found.min() == 0 and found.max() > 0.8 and len(set(found)) > 20


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a b c d", "A  B\nC d"),
        ("x = 1", "x = -1"),
        ("Ärger über ÉTÉ", "ärger ÜBER été"),
        ("don't stop!", "dont stop"),
        ("a b a b a b", "a b"),
        ("?!", "!?"),
    ],
)
def test_similarity_of_words_and_signs(left: str, right: str) -> None:
    found = jaccard(shingle([left]), np.asarray([0]), shingle([right]), np.asarray([0]))
    assert found[0] == pytest.approx(by_sets(left, right))


def test_signatures_estimate_similarity_and_do_not_depend_on_neighbours() -> None:
    texts = random_texts(2000)
    found = shingle(texts)
    left, right = np.arange(0, 2000, 2), np.arange(1, 2000, 2)
    exact = jaccard(found, left, found, right)
    estimate = (found.signatures[left] == found.signatures[right]).mean(1)
    assert np.abs(estimate - exact).mean() < 0.05  # 1 / sqrt(64) at worst is 0.0625
    assert abs((estimate - exact).mean()) < 0.01  # no lean to either side
    assert (shingle(texts[-3:]).signatures == found.signatures[-3:]).all()
    assert shingle([]).signatures.shape == (0, SIGNATURE)
    assert len(shingle(["", "a"])) == 2
