"""Lengths: what each limit would cut, as the encoder cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_dist.audit.lengths import histograms, kept, lost_difference, truncation_table
from orpo_dist.data import Encoder, Limits
from orpo_dist.data.reasons import Unusable

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
