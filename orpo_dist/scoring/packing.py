"""A micro-batch as one packed sequence, every prompt stored once and nothing padded.

A pair lies as ``[prompt][chosen][rejected]``. Positions of the rejected answer restart after the
prompt, and it attends to the prompt and itself, never to the chosen answer: each answer meets
exactly what it would meet alone. Prefix sharing as in arXiv 2410.20305.

Several ranks may share a sequence (``sequence``): each then gets a part of its tokens, all of the
same size, for which filler is added at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from orpo_dist.base.types import Pair, PairScores
from orpo_dist.engines.mesh import WHOLE, SequenceGroup
from orpo_dist.scoring.hardware import HERE, Hardware
from orpo_dist.scoring.masks import PackedMask, Segments
from orpo_dist.scoring.parcel import Parcel, together
from orpo_dist.scoring.ragged import FlatPairs, begins, cut, runs
from orpo_dist.scoring.rows import Rows, row_arrays
from orpo_dist.scoring.sequence import sum_over
from orpo_dist.scoring.switches import (
    Sides,
    Switch,
    packed_sides,
    part_of_sides,
    sides_of,
    stand_apart,
)
from orpo_dist.scoring.varlen import VarlenLayout, layout_arrays


@dataclass(frozen=True)
class Routed(Parcel):
    """pairs, times: (T,) the pair that a token is of, and how often it counts."""

    pairs: Tensor
    times: Tensor


@dataclass(frozen=True)
class PackedBatch(Parcel):
    """B pairs in one sequence of T tokens, S of which are predicted.

    input_ids, position_ids: (1, T). sources: (S,) where the hidden state lies that predicts a
    token; targets: (S,) that token. owners: (S,) row of the sum a token's log-prob goes to: b for
    the chosen answer of pair b, B + b for its rejected one, 2B + b for its prompt.
    answer_tokens: (2B,) lengths of the answers. nll_tokens: (B,). weight: (B,).
    varlen: where the sequences lie for a variable-length kernel, where one is to be used.
    rows: the same answers as rows, for layers that need them. sides: who shares a rope, where ropes
    change with the length and not all are on one side. routed: whose tokens they are, where experts
    are to be balanced. hardware: what computes its scores. sequence: who has the other
    tokens; T and S are then of this rank's part, places within it, segments and varlen of all.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments
    sources: Tensor
    targets: Tensor
    owners: Tensor
    answer_tokens: Tensor
    nll_tokens: Tensor
    weight: Tensor
    varlen: VarlenLayout | None = None
    rows: Rows | None = None
    sides: Sides | None = None
    routed: Routed | None = None
    hardware: Hardware = HERE
    sequence: SequenceGroup = WHOLE

    @property
    def mask(self) -> PackedMask:
        """What the model gets for its masks."""
        return PackedMask(
            self.segments, self.varlen, hardware=self.hardware, sequence=self.sequence
        )


def pack_pairs(
    pairs: Sequence[Pair] | FlatPairs,
    nll_scope: str = "completion",
    real: bool = True,
    varlen: bool = False,
    rows: bool = False,
    switches: tuple[Switch, ...] = (),
    routed: bool = False,
    hardware: Hardware = HERE,
    part: tuple[int, int] = (0, 1),
    pinned: bool = False,
) -> PackedBatch:
    """Collate pairs. real: False makes every pair filler of weight 0. varlen: for that kernel.

    rows: for a model with layers that need them. switches: where its ropes change. routed: for
    ``routing``. part: which of how many equal parts of the sequence, counted from 0; not of rows.
    pinned: in memory that a GPU copies by itself.
    """
    flat = FlatPairs.of(pairs)
    apart = stand_apart(switches, flat.lengths)
    laid = _Laid.of(flat, apart)
    prompt, chosen, rejected = flat.lengths.T
    with_prompt = nll_scope == "prompt_and_completion"
    arrays = {
        "input_ids": laid.tokens[None],
        "position_ids": runs(
            np.stack([0 * prompt, prompt * ~apart], 1),
            np.stack([prompt + chosen, prompt * apart + rejected], 1),
        )[None],
        **_predictions(flat.lengths, laid, with_prompt),
        "answer_tokens": np.concatenate([chosen, rejected]),
        "nll_tokens": chosen + (prompt - 1) * with_prompt,
        "weight": np.full(len(prompt), real / part[1], dtype=np.float32),
    }
    turned = packed_sides(switches, flat.lengths, apart)
    whose = _routed(flat.lengths, apart) if routed else {}
    segments = laid.segments
    if part[1] > 1:
        filler = -len(laid.tokens) % part[1]
        segments = np.append(segments, [[filler, 0, 0]], 0) if filler else segments
        turned = part_of_sides(turned, arrays["position_ids"], part) if switches else {}
        arrays, whose = _part_of(arrays, part), _part_of(whose, part)
    layout = layout_arrays(segments) if varlen else {}
    rectangle = {f"row_{name}": x for name, x in row_arrays(segments).items()} if rows else {}
    sides = {f"side_{name}": x for name, x in turned.items()}
    tensors = together(arrays | layout | rectangle | sides | whose, pinned)
    return PackedBatch(
        **{name: tensors[name] for name in arrays},
        segments=tuple((p, c, r) for p, c, r in segments.tolist()),
        varlen=VarlenLayout.of(segments, tensors) if varlen else None,
        rows=Rows(**{name[4:]: tensors[name] for name in rectangle}) if rows else None,
        sides=sides_of(turned, tensors),
        routed=Routed(*(tensors[name] for name in whose)) if routed else None,
        hardware=hardware,
        sequence=WHOLE,
    )


def _part_of(arrays: dict[str, np.ndarray], part: tuple[int, int]) -> dict[str, np.ndarray]:
    """Of the arrays of a whole sequence, those of one part: its tokens, and what they predict."""
    found = dict(arrays)
    for name in ("input_ids", "position_ids", "routed_pairs", "routed_times"):
        if name in arrays:
            found[name] = cut(arrays[name], part)
    if "sources" in arrays:
        length = found["input_ids"].shape[1]
        places = arrays["sources"] - part[0] * length
        here = (places >= 0) & (places < length)
        found |= {name: arrays[name][here] for name in ("targets", "owners")}
        found["sources"] = places[here]
    return found


def _routed(lengths: np.ndarray, apart: np.ndarray) -> dict[str, np.ndarray]:
    """Every token's pair, and how often it counts: a prompt that stands once, twice."""
    prompt, chosen, rejected = lengths.T
    parts = np.stack([prompt, chosen, prompt * apart, rejected], 1)
    one = np.ones_like(prompt)
    times = np.stack([2 - apart, one, one, one], 1)
    return {
        "routed_pairs": np.repeat(np.arange(len(prompt)), parts.sum(1)),
        "routed_times": np.repeat(times.ravel(), parts.ravel()),
    }


@dataclass(frozen=True)
class _Laid:
    """How pairs lie: ``[prompt][chosen][rejected]``, or ``[prompt][chosen][prompt][rejected]``.

    tokens: (T,). starts: (B, 3) where prompt, chosen and rejected begin. before: (B,) the token
    that predicts the first one of the rejected answer. segments: (S, 3), as attention sees it, a
    pair that stands apart as two without a prompt and a rejected answer.
    """

    tokens: np.ndarray
    starts: np.ndarray
    before: np.ndarray
    segments: np.ndarray

    @classmethod
    def of(cls, flat: FlatPairs, apart: np.ndarray) -> _Laid:
        if not apart.any():
            tokens, starts = flat.tokens.astype(np.int64), flat.starts
            return cls(tokens, starts, starts[:, 1] - 1, flat.lengths)
        prompt, chosen, rejected = flat.lengths.T
        parts = np.stack([prompt, chosen, prompt * apart, rejected], 1)
        tokens = flat.tokens[runs(flat.starts[:, [0, 1, 0, 2]], parts)].astype(np.int64)
        starts = begins(parts)[:, [0, 1, 3]]
        none = 0 * prompt
        alone = np.stack([none, prompt + chosen, none, none, prompt + rejected, none], 1)
        shared = np.concatenate([flat.lengths, np.stack([none] * 3, 1)], 1)
        segments = np.where(apart[:, None], alone, shared).reshape(-1, 3)
        before = np.where(apart, starts[:, 2], starts[:, 1]) - 1
        return cls(tokens, starts, before, segments[segments.any(1)])


def _predictions(lengths: np.ndarray, laid: _Laid, with_prompt: bool) -> dict[str, np.ndarray]:
    """What is predicted, from where and for which sum: ``sources``, ``targets``, ``owners``."""
    parts = [1, 2, 0] if with_prompt else [1, 2]  # chosen, rejected, prompt
    lengths, firsts = lengths[:, parts], laid.starts[:, parts]
    if with_prompt:  # nothing predicts the first token of a prompt
        lengths[:, 2] -= 1
        firsts[:, 2] += 1
    places = runs(firsts, lengths)
    sources = places - 1
    sources[begins(lengths)[:, 1]] = laid.before  # the prompt's last token predicts both answers
    count = len(lengths)
    rows = np.arange(count)[:, None] + count * np.arange(len(parts))
    return {
        "sources": sources,
        "targets": laid.tokens[places],
        "owners": np.repeat(rows.ravel(), lengths.ravel()),
    }


def gather_scores(batch: PackedBatch, logps: Tensor, balance: Tensor | None = None) -> PairScores:
    """Per-token log-probs (S,) -> per-pair scores. balance: (B,) of the experts."""
    count = len(batch.weight)
    sums = logps.new_zeros(3 * count).index_add(0, batch.owners, logps)
    sums = sum_over(batch.sequence, sums)
    chosen, rejected, prompt = sums.split(count)
    lengths = batch.answer_tokens.to(sums.dtype)
    return PairScores(
        chosen_logp=chosen / lengths[:count],
        rejected_logp=rejected / lengths[count:],
        nll_sum=-(chosen + prompt),
        nll_tokens=batch.nll_tokens,
        weight=batch.weight,
        balance=balance,
    )
