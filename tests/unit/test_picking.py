"""Members out of a sweep: good ones that differ."""

from __future__ import annotations

import numpy as np

from orpo_dist.ensembles.picking import Candidate, pick_by_pairs, pick_by_settings


def test_every_setting_before_a_second_seed() -> None:
    found = [
        Candidate(path, settings, value)
        for path, settings, value in (
            ("a1", "a", 0.9), ("a2", "a", 0.8), ("b1", "b", 0.7), ("a3", "a", 0.6), ("b2", "b", 0.5)
        )
    ]  # fmt: skip
    assert [c.path for c in pick_by_settings(found, 4)] == ["a1", "b1", "a2", "b2"]
    assert [c.path for c in pick_by_settings(found, 9)] == ["a1", "b1", "a2", "b2", "a3"]


def test_a_member_that_errs_elsewhere_beats_a_better_one_that_errs_alike() -> None:
    margins = np.array([
        [1.0, 1.0, 1.0, 1.0, -0.5],  # right on four
        [1.0, 1.0, 1.0, 1.0, -0.5],  # right on the same four
        [-0.5, -0.5, 1.0, 1.0, 1.0],  # right on three, the fifth among them
    ])  # fmt: skip
    assert pick_by_pairs(margins, 2) == [0, 2]
    assert sorted(pick_by_pairs(margins, 9)) == [0, 1, 2]
    assert pick_by_pairs(margins[:2], 1) == [0]
