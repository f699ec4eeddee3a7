"""Collation against the plain loops that it replaces, and how batches travel."""

from __future__ import annotations

import pickle
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orpo_dist.base.types import Pair
from orpo_dist.data.pairs import PairDataset
from orpo_dist.engines.mesh import WHOLE
from orpo_dist.scoring.hardware import HERE
from orpo_dist.scoring.packing import PackedBatch, pack_pairs
from orpo_dist.scoring.padding import PaddedBatch, pad_pairs
from orpo_dist.scoring.parcel import Parcel
from orpo_dist.scoring.switches import Switch

SCOPES = ("completion", "prompt_and_completion")

answer = st.lists(st.integers(0, 99), min_size=1, max_size=7)
some_pairs = st.lists(st.builds(Pair, answer, answer, answer), min_size=1, max_size=5)


def packed_by_loop(pairs: list[Pair], scope: str) -> dict[str, Any]:
    """Fields of a packed batch, one token after another."""
    with_prompt, count = scope == "prompt_and_completion", len(pairs)
    tokens, positions, sources, targets, owners = [], [], [], [], []
    for number, pair in enumerate(pairs):
        start, prompt = len(tokens), len(pair.prompt)
        tokens += pair.prompt + pair.chosen + pair.rejected
        positions += [*range(prompt + len(pair.chosen))]
        positions += [*range(prompt, prompt + len(pair.rejected))]
        last = start + prompt - 1
        second = last + len(pair.chosen) + 1
        sources += [*range(last, last + len(pair.chosen)), last]
        sources += [*range(second, second + len(pair.rejected) - 1)]
        targets += pair.chosen + pair.rejected
        owners += [number] * len(pair.chosen) + [count + number] * len(pair.rejected)
        if with_prompt:
            sources += [*range(start, last)]
            targets += pair.prompt[1:]
            owners += [2 * count + number] * (prompt - 1)
    return {
        "input_ids": [tokens],
        "position_ids": [positions],
        "sources": sources,
        "targets": targets,
        "owners": owners,
        "answer_tokens": [len(p.chosen) for p in pairs] + [len(p.rejected) for p in pairs],
        "nll_tokens": [len(p.chosen) + (len(p.prompt) - 1) * with_prompt for p in pairs],
        "weight": [1.0] * count,
    }


def layout_by_loop(pairs: list[Pair]) -> dict[str, Any]:
    """Fields of a ``VarlenLayout``, one pair after another."""
    keys, first_keys, again, again_keys = [], [], [], []
    queries_at, keys_at, at = [0], [0], 0
    for pair in pairs:
        prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        key, own, other = keys_at[-1], prompt + chosen, prompt + rejected
        keys += [*range(at, at + own), *range(at, at + prompt)]
        keys += [*range(at + own, at + own + rejected)]
        first_keys += [*range(key, key + own), *range(key + own + prompt, key + own + other)]
        again += [*range(at, at + prompt)]
        again_keys += [*range(key + own, key + own + prompt)]
        keys_at += [key + own, key + own + other]
        queries_at += [at + own, at + own + rejected]
        at += own + rejected
    return {
        "query_starts": queries_at,
        "key_starts": keys_at,
        "keys": keys,
        "again": again,
        "again_keys": again_keys,
        "first_keys": first_keys,
        "max_query": max(max(len(p.prompt + p.chosen), len(p.rejected)) for p in pairs),
        "max_key": max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs),
    }


def padded_by_loop(pairs: list[Pair], scope: str, pad_id: int) -> dict[str, Any]:
    """Fields of a padded batch, one row after another."""
    rows = [p.prompt + p.chosen for p in pairs] + [p.prompt + p.rejected for p in pairs]
    longest = max(map(len, rows))
    found: dict[str, Any] = {"input_ids": [], "attention_mask": [], "answer_mask": []}
    for number, row in enumerate(rows):
        prompt, rest = len(pairs[number % len(pairs)].prompt), longest - len(row)
        found["input_ids"].append(row + [pad_id] * rest)
        found["attention_mask"].append([1] * len(row) + [0] * rest)
        found["answer_mask"].append(
            [prompt <= column < len(row) for column in range(len(row) + rest)]
        )
    whole = [[bool(x) for x in row] for row in found["attention_mask"]]
    chosen = found["answer_mask"] if scope == "completion" else whole
    found["nll_mask"] = chosen[: len(pairs)]
    scored = [
        (row, column - 1)
        for row, mask in enumerate([*chosen[: len(pairs)], *found["answer_mask"][len(pairs) :]])
        for column, wanted in enumerate(mask)
        if wanted and column
    ]
    found["predicted"] = [[row for row, _ in scored], [column for _, column in scored]]
    return found | {"weight": [1.0] * len(pairs)}


def as_lists(batch: Any) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in values.items()}


def dataset(pairs: list[Pair]) -> PairDataset:
    parts = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    lengths = np.array([[len(part) for part in three] for three in parts], dtype=np.int32)
    tokens = np.array([t for three in parts for part in three for t in part], dtype=np.int32)
    none = np.zeros(len(pairs), dtype=np.int32)
    return PairDataset(tokens, lengths, none, none, None, {"category_names": [""]})


@settings(max_examples=60, deadline=None)
@given(some_pairs, st.sampled_from(SCOPES))
def test_packed_batches_are_those_of_the_loop(pairs: list[Pair], scope: str) -> None:
    found = as_lists(pack_pairs(pairs, scope, varlen=True, routed=True))
    layout, segments = found.pop("varlen"), found.pop("segments")
    alone = [found.pop(name) for name in ("rows", "sides", "hardware", "sequence")]
    assert alone == [None, None, HERE, WHOLE]
    parts = [
        (b, *part)
        for b, p in enumerate(pairs)
        for part in ((p.prompt, 2), (p.chosen, 1), (p.rejected, 1))
    ]
    assert as_lists(found.pop("routed")) == {
        "pairs": [b for b, tokens, _ in parts for _ in tokens],
        "times": [times for _, tokens, times in parts for _ in tokens],
    }
    assert found == packed_by_loop(pairs, scope)
    assert as_lists(layout) == layout_by_loop(pairs)
    assert segments == tuple((len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs)


@settings(max_examples=60, deadline=None)
@given(some_pairs, st.sampled_from(SCOPES), st.sampled_from([0, 7]))
def test_padded_batches_are_those_of_the_loop(pairs: list[Pair], scope: str, pad_id: int) -> None:
    found = as_lists(pad_pairs(pairs, scope, pad_id))
    assert found.pop("sides") is None
    assert found == padded_by_loop(pairs, scope, pad_id)


@settings(max_examples=30, deadline=None)
@given(some_pairs, st.data())
def test_pairs_of_a_dataset_collate_like_pairs_by_themselves(
    pairs: list[Pair], data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(st.sampled_from(range(len(pairs))), min_size=1, max_size=6))
    flat, some = dataset(pairs).flat(wanted), [pairs[index] for index in wanted]
    for collate in (pack_pairs, pad_pairs):
        mine, other = collate(flat), collate(some)
        for field in fields(other):
            value = getattr(other, field.name)
            if isinstance(value, Tensor):
                assert getattr(mine, field.name).dtype == value.dtype
                assert torch.equal(getattr(mine, field.name), value)


@pytest.mark.parametrize("switches", [(), (Switch(5, exact=False),)])
def test_experts_count_every_token_that_an_answer_sees(switches: tuple[Switch, ...]) -> None:
    """Whether a prompt stands once for both answers, or twice beside unlike ropes."""
    batch = pack_pairs(PAIRS, switches=switches, routed=True)
    assert batch.routed is not None
    assert len(batch.routed.pairs) == batch.input_ids.numel()
    counted = torch.zeros(2, dtype=torch.long).index_add(0, batch.routed.pairs, batch.routed.times)
    assert counted.tolist() == [2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in PAIRS]
    # The first pair has answers on both sides of the switch.
    assert int((batch.routed.times == 2).sum()) == (1 if switches else 4)


PAIRS = [Pair([5, 6, 7], [9, 10, 2], [11, 2]), Pair([20], [21, 2], [2, 2, 30, 2])]


def batches() -> list[PackedBatch | PaddedBatch]:
    return [pack_pairs(PAIRS, varlen=True), pad_pairs(PAIRS)]


def tensors_of(batch: Parcel) -> list[Tensor]:
    own = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    inner = [tensors_of(value) for value in vars(batch).values() if isinstance(value, Parcel)]
    return own + [tensor for some in inner for tensor in some]


@pytest.mark.parametrize("number", [0, 1])
def test_a_batch_reaches_a_device_in_one_copy(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, copied = batches()[number], []
    plain = Tensor.to

    def counting(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copied.append((self.dtype, kwargs))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", counting)
    there = batch.to("meta")
    assert copied == [(torch.uint8, {"non_blocking": True})]
    assert len({tensor.untyped_storage()._cdata for tensor in tensors_of(there)}) == 1
    for old, new in zip(tensors_of(batch), tensors_of(there), strict=True):
        assert (new.device.type, new.dtype, new.shape) == ("meta", old.dtype, old.shape)


@pytest.mark.parametrize("number", [0, 1])
def test_moving_and_pickling_change_nothing(number: int) -> None:
    batch = batches()[number]
    for other in (batch.to("cpu"), pickle.loads(pickle.dumps(batch))):  # noqa: S301
        for old, new in zip(tensors_of(batch), tensors_of(other), strict=True):
            assert old.dtype == new.dtype and torch.equal(old, new)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pins memory for a GPU")
@pytest.mark.parametrize("number", [0, 1])
def test_a_pinned_batch_is_copied_as_it_is(number: int) -> None:
    batch = batches()[number].pin_memory()
    assert all(tensor.is_pinned() for tensor in tensors_of(batch))
    for old, new in zip(tensors_of(batch), tensors_of(batch.to("cuda")), strict=True):
        assert torch.equal(old, new.cpu())
