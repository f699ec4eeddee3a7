"""Names of files that may be compressed; their contents: test_files.py."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from orpo_dist.data.packed import kind_of, open_text, packing_of


@pytest.mark.parametrize(
    ("name", "packing", "kind"),
    [
        ("a.jsonl", "", "jsonl"), ("a.JSONL.GZ", ".gz", "jsonl"), ("a.b.csv.zst", ".zst", "csv"),
        ("a.json.xz", ".xz", "json"), ("a.tsv.bz2", ".bz2", "tsv"), ("a.gz", ".gz", "a"),
        ("a", "", "a"), ("gz", "", "gz"),
    ],
)  # fmt: skip
def test_names(name: str, packing: str, kind: str) -> None:
    assert (packing_of(name), kind_of(name)) == (packing, kind)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_byte_order_mark_is_no_text_and_line_ends_stay(name: str, tmp_path: Path) -> None:
    content = "\ufeffü\r\nb\rc\n".encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with open_text(path) as file:
        assert file.read() == "ü\r\nb\rc\n"
