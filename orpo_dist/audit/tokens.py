"""Every pair in tokens: the lengths a run will see, and what its template makes of the texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from orpo_dist.audit.corpus import Corpus
from orpo_dist.data import Encoder
from orpo_dist.data.reasons import Unusable

BATCH = 2048


class TokenTable:
    """N pairs as the encoder sees them; each text tokenised once, so answers on their own.

    lengths: (N, 3) tokens, the end token included; a pair whose answer merges with its prompt may
    differ by a token from what training sees. shared: (N,) tokens both answers begin with.
    readable: (N,) bool. refused: pair -> reason of the loader. double_bos: pair -> where. beyond:
    pair -> a token that the model has no embedding for.
    """

    def __init__(self, corpus: Corpus, encoder: Encoder):
        self.encoder = encoder
        self.lengths = np.zeros((len(corpus), 3), np.int64)
        self.shared = np.zeros(len(corpus), np.int64)
        self.refused: dict[int, str] = {}
        self.double_bos: dict[int, str] = {}
        self.beyond: dict[int, str] = {}
        for start in tqdm(
            range(0, len(corpus), BATCH), desc="tokenising", disable=None, leave=False
        ):
            self._batch(corpus, range(start, min(start + BATCH, len(corpus))))
        self.readable = np.ones(len(corpus), bool)
        self.readable[list(self.refused)] = False

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.encoder.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]

    def _batch(self, corpus: Corpus, pairs: range) -> None:
        texts: list[str] = []
        kept: dict[int, list[int]] = {}  # with what begins their prompt
        for pair in pairs:
            example = corpus.examples[pair]
            try:
                found = self.encoder.pair_texts(example)
            except Unusable as reason:
                self.refused[pair] = reason.reason
                continue
            kept[pair] = self.encoder.bos_of(found)
            texts += [found.prompt, *found.answers]
        ids = iter(self._ids(texts) if texts else [])
        for pair, bos in kept.items():
            self._measure(pair, bos + next(ids), next(ids), next(ids))

    def _measure(
        self, pair: int, prompt: list[int], chosen: list[int], rejected: list[int]
    ) -> None:
        ends = {self.encoder.end_id, self.encoder.tokenizer.eos_token_id}
        if not ends.isdisjoint(chosen) or not ends.isdisjoint(rejected):
            self.refused[pair] = "end_inside"
        elif chosen == rejected:
            self.refused[pair] = "identical_answers"
        highest, rows = (
            max(*prompt, *chosen, *rejected, self.encoder.end_id),
            self.encoder.limits.rows,
        )
        if rows is not None and highest >= rows:
            token = self.encoder.tokenizer.convert_ids_to_tokens(highest)
            self.beyond[pair] = f"{token!r} is token {highest}, and the embedding has {rows} rows"
        begin = self.encoder.tokenizer.bos_token_id
        if begin is not None and prompt[:2] == [begin, begin]:
            self.double_bos[pair] = "the prompt's tokens"
        self.lengths[pair] = len(prompt), len(chosen) + 1, len(rejected) + 1
        self.shared[pair] = _shared(chosen, rejected)


def _shared(chosen: list[int], rejected: list[int]) -> int:
    """How many leading tokens are the same."""
    pairs: Any = zip(chosen, rejected, strict=False)
    shorter = min(len(chosen), len(rejected))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), shorter)
