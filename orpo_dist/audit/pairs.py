"""Rules that compare texts: repeated, contradictory and nearly equal pairs, and leakage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from orpo_dist.audit.corpus import Corpus, prompt_text
from orpo_dist.audit.near import candidates, candidates_between
from orpo_dist.audit.rules import NEAR, NEAR_IDENTICAL
from orpo_dist.audit.shingles import Shingles, jaccard, shingle
from orpo_dist.data.messages import words

Hits = dict[str, dict[int, str]]  # rule -> pair -> what is said of it
SLACK = 0.2  # a signature's estimate this far below the threshold is not worth the exact figure


@dataclass(frozen=True)
class Texts:
    """The texts of N pairs: as they are, as digests (white space apart), and as shingles."""

    prompts: list[str]
    digests: list[tuple[bytes, bytes, bytes]]
    prompt: Shingles
    chosen: Shingles
    rejected: Shingles

    @classmethod
    def of(cls, corpus: Corpus) -> Texts:
        prompts = [prompt_text(example) for example in corpus.examples]
        chosen = [words(example.chosen) for example in corpus.examples]
        rejected = [words(example.rejected) for example in corpus.examples]
        return cls(
            prompts,
            [
                (_digest(p), _digest(c), _digest(r))
                for p, c, r in zip(prompts, chosen, rejected, strict=True)
            ],
            *(shingle(texts) for texts in (prompts, chosen, rejected)),
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def compare_pairs(corpus: Corpus, texts: Texts) -> Hits:
    """Duplicates, near-duplicates, contradictions, and pairs of nearly equal answers."""
    hits: Hits = {"duplicate": {}, "near_duplicate": {}, "contradictory": {}}
    first: dict[tuple[bytes, bytes, bytes], int] = {}
    for pair, key in enumerate(texts.digests):
        earlier = first.setdefault(key, pair)
        if earlier != pair:
            hits["duplicate"][pair] = f"repeats {corpus.origin(earlier)}"
    for pair, (prompt, chosen, rejected) in enumerate(texts.digests):
        other = first.get((prompt, rejected, chosen))
        if other is not None:
            hits["contradictory"][pair] = f"contradicts {corpus.origin(other)}"
    _near_pairs(corpus, texts, np.asarray(list(first.values()), np.int64), hits)
    hits["near_identical"] = _near_identical(corpus, texts)
    return hits


def _near_pairs(corpus: Corpus, texts: Texts, distinct: np.ndarray, hits: Hits) -> None:
    """Adds near-duplicates and near-contradictions among the distinct pairs to ``hits``."""
    # The union of both answers: a pair with its sides swapped is a candidate too.
    answers = np.minimum(texts.chosen.signatures, texts.rejected.signatures)
    pairs = distinct[candidates(answers[distinct])]
    i, j = _similar(texts.prompt, texts.prompt, pairs, NEAR)[0].T
    straight = _least(texts.chosen, texts.chosen, texts.rejected, texts.rejected, i, j)
    crossed = _least(texts.chosen, texts.rejected, texts.rejected, texts.chosen, i, j)
    for a, b, same, swapped in zip(
        i.tolist(), j.tolist(), straight.tolist(), crossed.tolist(), strict=True
    ):
        if max(same, swapped) < NEAR:
            continue
        if same >= swapped:
            said = f"{same:.0%} similar to {corpus.origin(a)}"
            hits["near_duplicate"].setdefault(b, said)
        else:
            for one, other in ((a, b), (b, a)):
                said = f"contradicts {corpus.origin(other)} ({swapped:.0%} similar)"
                hits["contradictory"].setdefault(one, said)


def _least(
    a: Shingles, b: Shingles, c: Shingles, d: Shingles, i: np.ndarray, j: np.ndarray
) -> np.ndarray:
    """The lesser of the similarities of a[i] with b[j] and of c[i] with d[j]."""
    return np.minimum(jaccard(a, i, b, j), jaccard(c, i, d, j))


def _similar(
    left: Shingles, right: Shingles, pairs: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (M, 2) of at least this similarity, and the similarities (M,)."""
    i, j = pairs.T
    guess = (left.signatures[i] == right.signatures[j]).mean(1)
    pairs = pairs[guess >= least - SLACK]
    exact = jaccard(left, pairs[:, 0], right, pairs[:, 1])
    return pairs[exact >= least], exact[exact >= least]


def _near_identical(corpus: Corpus, texts: Texts) -> dict[int, str]:
    every = np.arange(len(corpus))
    pairs, similarity = _similar(
        texts.chosen, texts.rejected, np.stack([every, every], 1), NEAR_IDENTICAL
    )
    return {
        pair: f"the answers are {alike:.0%} similar"
        for pair, alike in zip(pairs[:, 0].tolist(), similarity.tolist(), strict=True)
    }


def find_leakage(corpus: Corpus, texts: Texts, held_out: Corpus, held_texts: Texts) -> Hits:
    """Pairs whose prompt, or nearly that, is in the evaluation data."""
    where: dict[bytes, int] = {}
    for pair, (prompt, _, _) in enumerate(held_texts.digests):
        where.setdefault(prompt, pair)
    answers = {(p, a) for p, *sides in held_texts.digests for a in sides}
    hits: Hits = {"leaked": {}, "leaked_near": {}}
    for pair, (prompt, *sides) in enumerate(texts.digests):
        if prompt in where:
            said = f"prompt of {held_out.origin(where[prompt])}"
            if any((prompt, side) in answers for side in sides):
                said += ", with one of the same answers"
            hits["leaked"][pair] = said
    rest = np.asarray([p for p in range(len(corpus)) if p not in hits["leaked"]], np.int64)
    found = candidates_between(texts.prompt.signatures[rest], held_texts.prompt.signatures)
    found[:, 0] = rest[found[:, 0]]
    near, similarity = _similar(texts.prompt, held_texts.prompt, found, NEAR)
    for (pair, other), alike in zip(near.tolist(), similarity.tolist(), strict=True):
        hits["leaked_near"].setdefault(
            pair, f"prompt {alike:.0%} similar to that of {held_out.origin(other)}"
        )
    return hits
