"""Parts of a packed sequence, and heads of its ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_dist.base.types import Pair
from orpo_dist.scoring.packing import PackedBatch, gather_scores, pack_pairs
from orpo_dist.scoring.sequence import shares
from orpo_dist.scoring.switches import Switch

LENGTHS = st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=5)


def some_pairs(lengths: list[tuple[int, int, int]]) -> list[Pair]:
    draw = np.random.default_rng(0)
    return [Pair(*(draw.integers(1, 99, n).tolist() for n in one)) for one in lengths]


@given(LENGTHS, st.integers(2, 7), st.sampled_from(["completion", "prompt_and_completion"]))
@settings(max_examples=60, deadline=None)
def test_parts_are_the_whole(lengths: list[tuple[int, int, int]], size: int, scope: str) -> None:
    pairs = some_pairs(lengths)
    whole = pack_pairs(pairs, scope, varlen=True, routed=True)
    parts = [
        pack_pairs(pairs, scope, varlen=True, routed=True, part=(rank, size))
        for rank in range(size)
    ]
    tokens = whole.input_ids.shape[1]
    held = {part.input_ids.shape for part in parts}
    assert held == {(1, -(-tokens // size))}  # equally many, in every collective
    for name in ("input_ids", "position_ids"):
        joined = torch.cat([getattr(part, name) for part in parts], 1)
        assert torch.equal(joined[:, :tokens], getattr(whole, name))
        assert not joined[:, tokens:].any()
    filler = sum(map(sum, parts[0].segments)) - tokens
    assert 0 <= filler < size
    assert {part.segments for part in parts} == {
        whole.segments + (((filler, 0, 0),) if filler else ())
    }
    length = -(-tokens // size)
    places = torch.cat([part.sources + rank * length for rank, part in enumerate(parts)])
    owners = torch.cat([part.owners for part in parts])
    targets = torch.cat([part.targets for part in parts])
    said = sorted(zip(places.tolist(), owners.tolist(), targets.tolist(), strict=True))
    assert said == sorted(
        zip(whole.sources.tolist(), whole.owners.tolist(), whole.targets.tolist(), strict=True)
    )
    times = torch.cat([part.routed.times for part in parts if part.routed])
    assert whole.routed is not None and torch.equal(times[:tokens], whole.routed.times)
    assert not times[tokens:].any()  # filler loads no expert
    assert sum(part.weight.sum() for part in parts) == pytest.approx(len(pairs))
    scored = sum(scores_of(part, whole) for part in parts)
    torch.testing.assert_close(scored, scores_of(whole, whole))


def scores_of(part: PackedBatch, whole: PackedBatch) -> torch.Tensor:
    """Sums of made-up log-probs of targets: a number for each token and owner."""
    logps = -(part.targets.double() + 100 * part.owners)
    scores = gather_scores(part, logps)
    return torch.stack([scores.chosen_logp, scores.rejected_logp, scores.nll_sum])


def test_ropes_look_at_the_whole_sequence() -> None:
    pairs = some_pairs([(4, 3, 9), (2, 2, 1)])
    changes = (Switch(8, True),)
    whole = pack_pairs(pairs, switches=changes)
    assert whole.sides is not None
    turned = whole.position_ids[0, whole.sides.order][whole.sides.back]
    found = []
    for rank in range(3):
        sides = pack_pairs(pairs, switches=changes, part=(rank, 3)).sides
        assert sides is not None and sides.positions is not None
        assert sum(sides.sizes) == sides.positions.shape[1]
        found.append(sides.positions[0, sides.order][sides.back])
    assert torch.equal(torch.cat(found)[: len(turned)], turned)
    one_side = pack_pairs(some_pairs([(2, 2, 1)]), switches=changes, part=(1, 2)).sides
    assert one_side is not None  # alone no side is needed, but a part knows not the longest length


@pytest.mark.parametrize("queries", [1, 4, 6, 8, 9])
@pytest.mark.parametrize("group", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_head_has_one_rank_and_its_keys(queries: int, group: int, size: int) -> None:
    queries *= group
    found = shares(queries, queries // group, size)
    heads = [head for one in found for head in range(one.queries.start, one.queries.stop)]
    assert heads == list(range(queries))
    counts = [one.asking for one in found]
    assert max(counts) - min(counts) <= 1
    for one in found:
        needed = {head // group for head in range(one.queries.start, one.queries.stop)}
        assert needed == set(range(one.keys.start, one.keys.stop))
