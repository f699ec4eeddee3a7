"""Texts as sets of word triples, their MinHash signatures, and their exact similarity.

Whole columns at a time: Arrow cuts the words, numpy hashes them, threads share the chunks. Words
are runs of letters and digits; every other sign, and every letter of the scripts that write
without spaces, is a word of its own, so that "x = 1" and "x = -1" differ.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SIGN = (
    r"[^\p{L}\p{N}\p{M}\s]"
    r"|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
)
SIGNATURE = 64  # hashes per signature
CHUNK = 4096  # texts at a time


@dataclass(frozen=True)
class Shingles:
    """values: (T,) uint32, the hashed word triples of N texts; starts: (N + 1,) where each begins.

    A text of n words has n of them (its end counts as two more words), so short texts have some.
    """

    values: np.ndarray
    starts: np.ndarray
    signatures: np.ndarray  # (N, SIGNATURE) uint32

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shingles of the given texts, and for each its position in ``texts``."""
        counts = np.diff(self.starts)[texts]
        owner = np.repeat(np.arange(len(texts)), counts)
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return self.values[self.starts[texts][owner] + within], owner


def shingle(texts: Sequence[str]) -> Shingles:
    """Shingles and signatures of texts, in order."""
    chunks = [texts[at : at + CHUNK] for at in range(0, len(texts), CHUNK)] or [[]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(_chunk, chunks))
    counts = np.concatenate([part[1] for part in parts])
    return Shingles(
        np.concatenate([part[0] for part in parts]),
        np.concatenate([[0], counts.cumsum()]),
        np.concatenate([part[2] for part in parts]),
    )


def _chunk(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(shingles, how many each text has, signatures)``."""
    column = pa.array(texts, pa.large_string())
    spaced = pc.replace_substring_regex(pc.utf8_lower(column), SIGN, r" \0 ")
    words = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(spaced))
    coded = words.flatten().dictionary_encode()
    # zlib's checksum: the same in every process, which Python's own hash is not
    table = np.asarray([zlib.crc32(w.encode()) for w in coded.dictionary.to_pylist()], np.uint64)
    hashes = table[coded.indices.to_numpy()] if len(table) else np.zeros(0, np.uint64)
    counts = np.asarray(pc.list_value_length(words), dtype=np.int64)
    values = _triples(hashes, counts)
    return values, counts, _signatures(values, counts)


def _triples(words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Each word mixed with the two after it in the same text."""
    mixed = words * np.uint64(0x9E3779B97F4A7C15)
    left = np.repeat(counts.cumsum(), counts) - np.arange(len(words)) - 1  # words still to come
    for step, factor in ((1, 0xC2B2AE3D27D4EB4F), (2, 0x165667B19E3779F9)):
        later = np.where(left >= step, np.roll(words, -step) + np.uint64(1), np.uint64(0))
        mixed += later * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _signatures(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """MinHash: under each of ``SIGNATURE`` hash functions the smallest shingle of every text."""
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 2**32, SIGNATURE, dtype=np.uint32) | np.uint32(1)
    shifts = generator.integers(0, 2**32, SIGNATURE, dtype=np.uint32)
    found = np.full((len(counts), SIGNATURE), np.uint32(2**32 - 1))
    filled = np.flatnonzero(counts)
    if len(filled) == 0:
        return found
    starts = (counts.cumsum() - counts)[filled]
    hashed = np.empty_like(values)
    for number, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
        np.multiply(values, factor, out=hashed)
        hashed += shift
        hashed ^= hashed >> np.uint32(15)
        found[filled, number] = np.minimum.reduceat(hashed, starts)
    return found


def jaccard(left: Shingles, lefts: np.ndarray, right: Shingles, rights: np.ndarray) -> np.ndarray:
    """Exact similarity (M,) of M pairs of texts: shared distinct shingles / all distinct ones."""
    found = np.ones(len(lefts))
    for at in range(0, len(lefts), CHUNK):
        size = min(CHUNK, len(lefts) - at)
        ours, theirs = (
            np.unique((owner.astype(np.uint64) << np.uint64(32)) | values)
            for values, owner in (
                left.take(lefts[at : at + CHUNK]),
                right.take(rights[at : at + CHUNK]),
            )
        )
        everything = np.sort(np.concatenate([ours, theirs]))
        twice = everything[1:][everything[1:] == everything[:-1]]
        shared = np.bincount((twice >> np.uint64(32)).astype(np.int64), minlength=size)
        total = np.bincount((everything >> np.uint64(32)).astype(np.int64), minlength=size) - shared
        np.divide(shared, total, out=found[at : at + size], where=total > 0)
    return found
