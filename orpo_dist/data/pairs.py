"""``PairDataset``: tokenised pairs as flat arrays, kept in memory or mapped from a cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orpo_dist.base.types import Pair
from orpo_dist.scoring.ragged import FlatPairs, runs


class PairDataset:
    """N tokenised pairs.

    tokens: (T,) int32, the prompts, chosen and rejected answers one after another.
    lengths: (N, 3) int32, tokens in prompt, chosen and rejected of each pair.
    category_ids: (N,) int32 into ``categories``. source_ids: (N,) int32, position in ``data_path``.
    difficulty: (N,), higher is harder, where the data or a model have said so.
    rows: (N, 2) int32, where each pair was read: position in the report's ``files``, and row there.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        category_ids: np.ndarray,
        source_ids: np.ndarray,
        difficulty: np.ndarray | None,
        report: dict[str, Any],
        rows: np.ndarray | None = None,
    ):
        self.tokens, self.lengths = tokens, lengths
        self.category_ids, self.source_ids = category_ids, source_ids
        self.difficulty, self.rows = difficulty, rows
        self.report = report
        self.categories: list[str] = report["category_names"]
        self._starts = np.concatenate([[0], lengths.sum(1, dtype=np.int64).cumsum()])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its longer answer."""
        return int((self.lengths[:, 0] + self.lengths[:, 1:].max(1)).max(initial=0))

    def __getitem__(self, index: int) -> Pair:
        prompt, chosen, rejected = self.lengths[index]
        start = self._starts[index]
        row = self.tokens[start : start + prompt + chosen + rejected].tolist()
        return Pair(
            row[:prompt],
            row[prompt : prompt + chosen],
            row[prompt + chosen :],
            self.categories[self.category_ids[index]],
        )

    def flat(self, indices: Sequence[int]) -> FlatPairs:
        """Some of the pairs as they lie here, for collation."""
        rows = np.asarray(indices)
        lengths = self.lengths[rows].astype(np.int64)
        return FlatPairs(self.tokens[runs(self._starts[rows], lengths.sum(1))], lengths)

    def origin(self, index: int) -> str:
        """Where a pair was read, as ``file:row``, for a person to find it; or its number from 0."""
        if self.rows is None:
            return f"pair {index}"
        file, row = self.rows[index]
        return f"{self.report['files'][file]}{row}"

    def digest(self) -> str:
        """A fingerprint of all tokens and of how they are cut into pairs."""
        content = hashlib.blake2b(self.lengths.tobytes())
        content.update(self.tokens.data)
        return content.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the arrays and the report to a new folder."""
        folder.mkdir(parents=True)
        for name in ("tokens", "lengths", "category_ids", "source_ids"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        for name in ("difficulty", "rows"):
            if getattr(self, name) is not None:
                np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "report.json").write_text(json.dumps(self.report), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PairDataset:
        """Map a saved dataset; the tokens stay on disk until they are read."""
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        lengths, category_ids, source_ids = (
            np.load(folder / f"{name}.npy") for name in ("lengths", "category_ids", "source_ids")
        )
        difficulty, rows = (
            np.load(folder / name) if (folder / name).exists() else None
            for name in ("difficulty.npy", "rows.npy")
        )
        return cls(tokens, lengths, category_ids, source_ids, difficulty, report, rows)
