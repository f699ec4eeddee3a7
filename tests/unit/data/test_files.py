"""Files of every kind, packed or not: text, CSV, parquet, arrow."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.data.sources import open_source
from tests.unit.data.written import (
    JSONL,
    ROWS,
    TALK,
    Write,
    numbers_of,
    parquet_of,
    refusal,
    rows_of,
)


def zstd(data: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip


def csv_of(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl", JSONL.rstrip("\n")),
        ("a.jsonl", JSONL.replace("\n", "\r\n")),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("a.json", JSONL),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.json", json.dumps({"anything": ROWS})),
        ("a.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]})),
        ("a.json", json.dumps({str(i): row for i, row in enumerate(ROWS)})),
        (
            "a.json",
            json.dumps({k: {str(i): row[k] for i, row in enumerate(ROWS)} for k in ROWS[0]}),
        ),
        ("a.json", "\n".join(json.dumps(row, indent=4) for row in ROWS)),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.jsonl", "\n" + json.dumps(ROWS, indent=1) + "\n"),
        ("a.jsonl", "\n".join(json.dumps(row, indent=4) for row in ROWS)),
        ("a.jsonl", "".join(json.dumps(row, indent=4) for row in ROWS)),
        ("a.jsonl", "".join(json.dumps(row) for row in ROWS)),
        ("a.jsonl", JSONL.replace("\n", "\r")),
        ("a.ndjson", JSONL),
        ("a.JSONL", JSONL),
        ("a.csv", csv_of(ROWS)),
        ("a.csv", csv_of(ROWS, ";")),
        ("a.csv", csv_of(ROWS).replace("\r\n", "\r")),
        ("a.tsv", csv_of(ROWS, "\t")),
        ("a.b.jsonl", JSONL),
    ],
)
@pytest.mark.parametrize(
    "packing", ["", " bom", ".gz", ".gz bom", ".bz2", ".xz", ".zst", ".zst bom"]
)
def test_text_files(name: str, content: str, packing: str, write: Write) -> None:
    ending, _, bom = packing.partition(" ")
    data = content.encode("utf-8-sig" if bom else "utf-8")
    path = write(name + ending, PACK[ending](data))
    assert rows_of(path) == ROWS
    assert open_source(str(path), "train").name == "a"


def test_parquet_with_strings_and_messages(tmp_path: Path) -> None:
    assert rows_of(parquet_of(ROWS, tmp_path / "a.parquet")) == ROWS
    nested = [{"chosen": TALK, "rejected": TALK[:1], "score": 1.5}]
    assert rows_of(parquet_of(nested, tmp_path / "b.parquet")) == nested
    many = [{"n": i} for i in range(2500)]
    path = parquet_of(many, tmp_path / "c.parquet")
    assert rows_of(path) == many
    assert numbers_of(path) == list(range(1, 2501))


def test_csv_cells_with_quotes_newlines_and_message_lists(write: Write) -> None:
    rows = [
        {"prompt": 'He said "no",\nthen\r\nleft', "chosen": json.dumps(TALK), "rejected": "[{x"},
        {"prompt": "", "chosen": " " + json.dumps(TALK), "rejected": "[1, 2]"},
    ]
    found = rows_of(write("a.csv", csv_of(rows)))
    assert found == rows  # parse_row unserialises


def test_csv_rows_of_the_wrong_length_and_huge_cells(write: Write) -> None:
    path = write("a.csv", f"prompt,chosen\nonly\na,b,c,d\n{'x' * 300_000},y\n")
    found = rows_of(path)
    assert found[0] == {"prompt": "only", "chosen": None}
    assert found[1] == {"prompt": "a", "chosen": "b"}
    assert len(found[2]["prompt"]) == 300_000
    assert numbers_of(path) == [2, 3, 4]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_not_utf8(name: str, write: Write) -> None:
    data = b'[{"prompt": "' + "ü".encode("latin-1") + b' abc"}]\n'
    path = write(name, gzip.compress(data) if name.endswith("gz") else data)
    assert (
        refusal(path)
        == f"data file {path}: is not UTF-8 text; convert it, e.g. with iconv -t utf-8"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.parquet", b"", "is empty"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        ("a.csv", b"prompt,chosen,rejected\n", "holds no rows"),
        ("a.jsonl.gz", gzip.compress(b""), "holds no rows"),
        ("a.jsonl.gz", b"plain text", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(JSONL.encode())[:-12], "cannot be read"),
        *((f"a.jsonl{end}", b"plain text", "cannot be read") for end in (".bz2", ".xz", ".zst")),
        *(
            (f"a.jsonl{end}", PACK[end](JSONL.encode())[:-12], "cannot be read")
            for end in (".bz2", ".xz", ".zst")
        ),
        ("a.csv.zst", zstd(b""), "holds no rows"),
        ("a.parquet.gz", gzip.compress(b"PAR1"), "unknown kind"),
        ("a.arrow", b"ARROW1 but not really", "is not Arrow"),
        ("a.csv", b"prompt,chosen,chosen\na,b,c\n", "has 2 columns named 'chosen'"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid x", "is not fetched yet"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid x", "is not fetched yet"),
        ("a.parquet", b"PAR1 but not really", "is not Parquet"),
        ("a.txt", b"text", "unknown kind; use .jsonl, .json, .csv, .tsv, .parquet"),
        ("a", b"text", "unknown kind"),
        ("a.jsonl.zip", b"PK", "unknown kind"),
    ],
)
def test_files_without_rows(name: str, content: bytes, message: str, write: Write) -> None:
    path = write(name, content)
    assert refusal(path).startswith(f"data file {path}: {message}")


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.feather

    rows = [{"n": i, "chosen": {"role": "assistant", "content": "ü"}} for i in range(2500)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.feather.write_feather(table, tmp_path / "a.feather", compression="zstd")
    with pyarrow.ipc.new_stream(tmp_path / "b.arrow", table.schema) as stream:
        stream.write_table(table)
    for name in ("a.feather", "b.arrow"):
        assert rows_of(tmp_path / name) == rows
        assert numbers_of(tmp_path / name) == list(range(1, 2501))
