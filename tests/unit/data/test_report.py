"""The numbers of the data report, against a small example worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_dist.data import Columns, Encoder, Limits, PairDataset, build
from orpo_dist.data.report import truncation_sentences
from orpo_dist.data.sources import Source


def marks(count: int) -> str:
    """A text of exactly ``count`` tokens: nothing ever merges with this byte."""
    return "\x01" * count


def sized(tokenizer: Any, sizes: list[tuple[int, int, int]], limits: Limits) -> PairDataset:
    """Pairs whose texts have the given numbers of tokens, end tokens not counted."""
    rows = [
        dict(zip(("prompt", "chosen", "rejected"), map(marks, size), strict=True)) for size in sizes
    ]
    source = Source("made", [(f"made:{i}", row) for i, row in enumerate(rows)], [])
    return build([source], Encoder(tokenizer, "none", limits), Columns(), progress=False)


def test_the_report_of_a_small_example(tokenizer: Any) -> None:
    sizes = [(10, 5, 3), (4, 20, 2), (6, 3, 30)]
    report = sized(tokenizer, sizes, Limits(prompt=6, completion=8)).report
    assert report["tokens"] == {
        "prompt": {"median": 6, "p95": 10, "max": 10, "total": 20},
        "chosen": {"median": 6, "p95": 21, "max": 21, "total": 31},
        "rejected": {"median": 4, "p95": 31, "max": 31, "total": 38},
    }
    assert report["truncated"] == {
        "prompt": {"count": 1, "tokens": 4},
        "chosen": {"count": 1, "tokens": 13},
        "rejected": {"count": 1, "tokens": 23},
    }
    assert report["tokens_kept"] == 89 - 40
    assert report["limits"] == {
        "max_prompt_length": 6,
        "max_completion_length": 8,
        "max_seq_length": None,
    }
    assert truncation_sentences(report) == [
        (
            True,
            "1 of 3 prompts (33%) are cut on the left, 20% of all prompt tokens are dropped; "
            "--max-prompt-length 10 would keep 95 % of the prompts whole",
        ),
        (
            True,
            "2 of 6 answers (33%) are cut on the right; 95 % of them have up to 31 tokens "
            "(--max-completion-length, --max-seq-length)",
        ),
    ]


@pytest.mark.parametrize(
    ("cut_prompts", "prompt_size", "cut_answers", "loud"),
    [
        (0, 9, 0, []),
        (1, 9, 0, [False]),
        (2, 9, 0, [True]),
        (1, 99, 0, [True]),
        (0, 9, 2, [False]),
        (0, 9, 3, [True]),
        (1, 9, 3, [False, True]),
    ],
)
def test_only_much_truncation_is_loud(
    cut_prompts: int, prompt_size: int, cut_answers: int, loud: list[bool], tokenizer: Any
) -> None:
    """Four times two answers: a quarter, two of them, is not yet loud; neither is one prompt."""
    sizes = [
        (prompt_size if i < cut_prompts else 8, 9 if i < cut_answers else 5, 3) for i in range(4)
    ]
    report = sized(tokenizer, sizes, Limits(prompt=8, completion=8)).report
    assert [said[0] for said in truncation_sentences(report)] == loud
