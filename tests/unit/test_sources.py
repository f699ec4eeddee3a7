"""Rows out of every kind of file, with the place where people find them again."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.data.json_files import Unreadable
from orpo_dist.data.sources import open_source
from orpo_dist.types import TemporaryFailure, UserError

ROWS = [{"prompt": f"Q{i}", "chosen": f"good ü {i}", "rejected": f'"bad", {i}'} for i in range(3)]
TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


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


def csv_of(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parquet_of(rows: list[dict[str, Any]], path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl", JSONL.rstrip("\n")),
        ("a.jsonl", JSONL.replace("\n", "\r\n")),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("a.json", JSONL),
        ("a.csv", csv_of(ROWS)),
        ("a.b.jsonl", JSONL),
    ],
)
@pytest.mark.parametrize("packing", ["plain", "bom", "gz", "bom gz"])
def test_text_files(name: str, content: str, packing: str, write: Write) -> None:
    data = content.encode("utf-8-sig" if "bom" in packing else "utf-8")
    path = write(name + ".gz", gzip.compress(data)) if "gz" in packing else write(name, data)
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


def test_row_numbers_are_line_numbers_also_after_blank_lines(write: Write) -> None:
    path = write("a.jsonl", '\n{"n": 1}\n\n   \n{"n": 2}\nbroken {\n{"n": 3}\n\n')
    assert numbers_of(path) == [2, 5, 6, 7]
    found = rows_of(path)
    assert isinstance(found[2], Unreadable)
    assert found[:2] + found[3:] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert numbers_of(write("lines.json", '{"n": 1}\n\n{"n": 2}\n')) == [1, 3]
    assert numbers_of(write("array.json", '[\n\n{"n": 1},\n{"n": 2}]')) == [1, 2]


@pytest.mark.parametrize("line", ["{", "nothing", '{"a": 1,}', "[" * 100_000, "9" * 5_000])
def test_a_broken_line_does_not_stop_the_others(line: str, write: Write) -> None:
    found = rows_of(write("a.jsonl", f'{line}\n{{"n": 1}}\n'))
    assert isinstance(found[0], Unreadable)
    assert found[1:] == [{"n": 1}]


def test_lines_that_are_json_but_no_objects_are_passed_on(write: Write) -> None:
    assert rows_of(write("a.jsonl", '3\n"text"\nnull\n[1]\n')) == [3, "text", None, [1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"n": 1},\n {"n": 2},\n {"n": }]', ":3: is not JSON"),
        ('[{"n": 1}', ":1: is not JSON"),
        ('{"n": 1}', ": holds one object; expected an array of rows"),
        ("3", ": holds one value; expected an array"),
        ('"text"', ": holds one value; expected an array"),
        ("null", ": holds one value; expected an array"),
        ("[" * 100_000, ": cannot be read as JSON"),
        (f"[{'9' * 5_000}]", ": cannot be read as JSON"),
        ("[]", ": holds no rows"),
        ("", ": is empty"),
    ],
)
def test_bad_json_files(content: str, message: str, write: Write) -> None:
    path = write("a.json", content)
    assert refusal(path).startswith(f"data file {path}{message}")


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
        ("a.parquet", b"PAR1 but not really", "is not Parquet"),
        ("a.txt", b"text", "unknown kind; use .jsonl, .json, .csv, .tsv, .parquet"),
        ("a", b"text", "unknown kind"),
        ("a.jsonl.zip", b"PK", "unknown kind"),
    ],
)
def test_files_without_rows(name: str, content: bytes, message: str, write: Write) -> None:
    path = write(name, content)
    assert refusal(path).startswith(f"data file {path}: {message}")


@pytest.mark.parametrize(
    "path", ["absent.jsonl", "absent.jsonl.gz", "./absent", "/absent/place", "~/absent", "a/b/c"]
)
def test_missing_files_are_not_looked_up_on_the_hub(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_: pytest.fail("asked the hub"))
    assert refusal(path) == f"data file {path}: does not exist"


@pytest.mark.parametrize("name", ["pairs", "someone/pairs", "someone/pairs-v1.1", "x/tulu-2.5-mix"])
def test_hub_ids(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[str] = []

    def load_dataset(path: str) -> Any:
        asked.append(path)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source(name, "train")
    assert list(source.rows)[1] == (f"{name}[train]:2", ROWS[1])
    assert source.name == name.rpartition("/")[2]
    assert asked == [name]


def test_a_hub_id_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str) -> Any:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert refusal("someone/pairs") == (
        "data someone/pairs: neither a file here nor a hub data set that loads (no network)"
    )


def test_a_folder_is_all_its_files_in_order(write: Write, tmp_path: Path) -> None:
    write("data/b.jsonl", '{"n": 2}\n')
    write("data/a.json", '[{"n": 1}]')
    write("data/c.csv.gz", gzip.compress(b"n\n3\n"))
    parquet_of([{"n": 4}], tmp_path / "data" / "d.parquet")
    write("data/notes.txt", "not data")
    source = open_source(str(tmp_path / "data"), "train")
    found = list(source.rows)
    assert [row for _, row in found] == [{"n": 1}, {"n": 2}, {"n": "3"}, {"n": 4}]
    assert found[1][0] == f"{tmp_path / 'data' / 'b.jsonl'}:1"
    assert source.name == "data"


def test_a_folder_with_files_named_after_splits(write: Write, tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl"):
        write(f"data/{name}", json.dumps({"file": name}) + "\n")
    folder = tmp_path / "data"
    train = [{"file": "train-0.jsonl"}, {"file": "train-1.jsonl"}]
    assert rows_of(folder, "train") == train
    assert rows_of(folder, "test") == [{"file": "test.jsonl"}]
    assert "no file named after the split 'dev'" in refusal(folder, "dev")


def test_a_folder_without_train_files_does_not_train_on_test_files(
    write: Write, tmp_path: Path
) -> None:
    for name in ("data.jsonl", "test.jsonl", "valid.jsonl"):
        write(f"data/{name}", json.dumps({"file": name}) + "\n")
    assert rows_of(tmp_path / "data", "train") == [{"file": "data.jsonl"}]


def test_a_folder_without_data(write: Write, tmp_path: Path) -> None:
    write("data/notes.txt", "not data")
    assert refusal(tmp_path / "data").startswith(
        f"data folder {tmp_path / 'data'}: holds no .jsonl"
    )


def test_folders_of_the_datasets_library(tmp_path: Path) -> None:
    import datasets

    rows = [{**row, "turns": TALK} for row in ROWS]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    datasets.Dataset.from_list(rows).save_to_disk(whole)
    splits = {"train": rows[:2], "test": rows[2:]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(part) for name, part in splits.items()}
    ).save_to_disk(parts)
    assert rows_of(whole) == rows
    assert rows_of(parts, "train") == rows[:2]
    found = list(open_source(f"{parts}/", "test").rows)
    assert found == [(f"{parts}/[test]:1", rows[2])]
    assert open_source(f"{parts}/", "test").name == "parts"
    message = refusal(parts, "valid")
    assert re.search(r"no split 'valid'; it has train, test \(set --train-split", message)


def test_the_fingerprint_follows_the_content(write: Write) -> None:
    def fingerprint() -> list[str]:
        return open_source(str(path), "train").fingerprint

    path = write("a.jsonl", JSONL)
    first = fingerprint()
    assert fingerprint() == first
    changed = path.stat().st_mtime_ns
    write("a.jsonl", JSONL + "\n")
    os.utime(path, ns=(changed, changed))
    assert fingerprint() != first
    write("a.jsonl", JSONL)
    os.utime(path, ns=(1, 1))
    assert fingerprint() != first


def test_a_hub_that_does_not_answer_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(path: str) -> None:
        raise ConnectionError(f"Couldn't reach {path} on the Hub")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TemporaryFailure, match="data org/pairs: cannot be loaded now"):
        open_source("org/pairs", "train")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="data org/pairs: neither a file"):
        open_source("org/pairs", "train")
