"""Texts by chance, and their similarity by Python's sets."""

from __future__ import annotations

import numpy as np

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
