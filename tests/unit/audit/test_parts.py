"""The arithmetic under the audit's rules, against the obvious way to compute the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_dist.audit.corpus import read_corpus
from orpo_dist.audit.lengths import histograms, kept, lost_difference, truncation_table
from orpo_dist.audit.near import candidates, candidates_between
from orpo_dist.audit.shingles import SIGNATURE, jaccard, shingle
from orpo_dist.audit.text_rules import SCRIPTS, main_scripts
from orpo_dist.audit.tokens import TokenTable
from orpo_dist.data import Columns, Encoder, Limits
from orpo_dist.data.encode import Encoded
from orpo_dist.data.reasons import Unusable
from tests.conftest import DEMO

WORDS = [f"w{number}" for number in range(60)]


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 39 words; every second one is the one before it with a word replaced."""
    generator = np.random.default_rng(seed)
    texts: list[list[str]] = []
    for number in range(count):
        if number % 2:
            text = list(texts[-1])
            text[generator.integers(len(text))] = "other"
        else:
            text = generator.choice(WORDS, generator.integers(1, 40)).tolist()
        texts.append(text)
    return [" ".join(text) for text in texts]


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


LIMITS = [
    Limits(), Limits(prompt=9), Limits(completion=5), Limits(sequence=16), Limits(9, 5),
    Limits(9, None, 12), Limits(None, 5, 12), Limits(3, 4, 8), Limits(sequence=4),
]  # fmt: skip


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_truncation_costs_are_what_the_encoder_cuts(
    limits: Limits, tokenizer: Any, tmp_path: Path
) -> None:
    """Lengths and lost differences for all pairs at once, against the encoder one by one."""
    generator = np.random.default_rng(0)
    encoder = Encoder(tokenizer, "none", limits)
    full, shared, after = [], [], []
    for _ in range(300):
        sizes = generator.integers(1, 14, 3)
        prompt, chosen, rejected = (generator.integers(5, 7, n).tolist() for n in sizes)
        if chosen == rejected:
            continue
        end = [encoder.end_id]
        result = encoder._truncate(prompt, chosen + end, rejected + end, False)
        full.append((sizes[0], sizes[1] + 1, sizes[2] + 1))
        same = [a == b for a, b in zip(chosen, rejected, strict=False)]
        shared.append((*same, False).index(False))
        after.append(None if isinstance(result, Unusable) else tuple(map(len, result)))
    lengths = np.asarray(full)
    lost = lost_difference(lengths, np.asarray(shared), limits)
    assert lost.tolist() == [row is None for row in after]
    keep = ~lost
    assert kept(lengths, limits)[keep].tolist() == [list(row) for row in after if row]


def test_lengths_in_tokens_are_the_loaders(tokenizer: Any) -> None:
    corpus = read_corpus([str(DEMO / "train.jsonl")], Columns(), "train")
    encoder = Encoder(tokenizer)
    table = TokenTable(corpus, encoder)
    encoded = encoder.encode(corpus.examples)
    expected = [pair.full_lengths for pair in encoded if isinstance(pair, Encoded)]
    assert table.lengths.tolist() == [list(lengths) for lengths in expected]
    assert table.readable.all()


def test_truncation_table_ends_where_nothing_is_cut() -> None:
    lengths = np.asarray([(100, 60, 10), (300, 10, 200)])
    rows = truncation_table(lengths, np.zeros(2, int), Limits(prompt=200, completion=50))
    assert rows[0] == {
        "setting": "now: prompt 200, completion 50", "value": None, "pairs_cut": 2,
        "share_cut": 1.0, "tokens_lost": 260, "share_lost": 260 / 680,
        "pairs_without_difference": 0,
    }  # fmt: skip
    values = [(row["setting"], row["value"], row["pairs_cut"]) for row in rows[1:]]
    assert values == [
        ("max_prompt_length", 64, 2), ("max_prompt_length", 128, 1), ("max_prompt_length", 256, 1),
        ("max_completion_length", 64, 1), ("max_completion_length", 128, 1),
        ("max_seq_length", 64, 2), ("max_seq_length", 128, 2), ("max_seq_length", 256, 1),
    ]  # fmt: skip


def test_histograms_count_every_text_once() -> None:
    lengths = np.random.default_rng(0).integers(0, 5000, (1000, 3))
    counts = histograms(lengths)
    assert [sum(counts[part]) for part in ("prompt", "chosen", "rejected")] == [1000] * 3
    assert len(counts["edges"]) == len(counts["prompt"]) + 1
    assert sum(histograms(np.ones((7, 3), int))["prompt"]) == 7


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Vingt lettres ou plus, sûrement", "Latin"),
        ("Это предложение на русском языке, и word", "Cyrillic"),
        ("这是一个足够长的中文句子，用来测试脚本识别功能是否正确", "Han"),
        ("これはひらがながおおいにほんごのぶんしょうですよね", "Kana"),
        ("हिन्दी में एक पर्याप्त लंबा वाक्य यहाँ लिखा है", "Devanagari"),
        ("هذه جملة عربية طويلة بما يكفي للاختبار", "Arabic"),
        ("too short", "no letters"),
        ("1234567890 !!! 1234567890 +++ 1234567890 🙂🙂🙂", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert SCRIPTS[main_scripts([text])[0]] == script
