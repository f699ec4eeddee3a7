"""Lengths in tokens are those that training sees."""

from __future__ import annotations

from typing import Any

from orpo_dist.audit.corpus import read_corpus
from orpo_dist.audit.tokens import TokenTable
from orpo_dist.data import Columns, Encoder
from orpo_dist.data.encode import Encoded
from tests.conftest import DEMO


def test_lengths_in_tokens_are_the_loaders(tokenizer: Any) -> None:
    corpus = read_corpus([str(DEMO / "train.jsonl")], Columns(), "train")
    encoder = Encoder(tokenizer)
    table = TokenTable(corpus, encoder)
    encoded = encoder.encode(corpus.examples)
    expected = [pair.full_lengths for pair in encoded if isinstance(pair, Encoded)]
    assert table.lengths.tolist() == [list(lengths) for lengths in expected]
    assert table.readable.all()
