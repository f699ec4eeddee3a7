"""Files of rows, and what is read from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.data.sources import open_source

ROWS = [{"prompt": f"Q{i}", "chosen": f"good ü {i}", "rejected": f'"bad", {i}'} for i in range(3)]
TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
Write = Callable[[str, str | bytes], Path]


def rows_of(path: Path | str, split: str = "train") -> list[Any]:
    return [row for _, row in open_source(str(path), split).rows]


def numbers_of(path: Path) -> list[int]:
    origins = [origin.rpartition(":") for origin, _ in open_source(str(path), "train").rows]
    assert {file for file, _, _ in origins} == {str(path)}
    return [int(number) for _, _, number in origins]


def refusal(path: Path | str, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet_of(rows: list[dict[str, Any]], path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path
