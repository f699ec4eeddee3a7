"""Rows out of every kind of file, with the place where people find them again."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.base.types import TemporaryFailure, UserError
from orpo_dist.data.json_files import Unreadable
from orpo_dist.data.sources import open_source

ROWS = [{"prompt": f"Q{i}", "chosen": f"good ü {i}", "rejected": f'"bad", {i}'} for i in range(3)]
TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
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
        ('{"a": {"n": 1}}', ": holds one object"),
        ('{"train": [{"n": 1}], "test": [{"n": 2}]}', ": holds one object"),
        ('{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}', ": holds one object"),
        ('{"chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}', ": holds one object"),
        ('{\n"n": 1}\n{"n": 2}\n{"n":', ":4: is not JSON"),
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


def test_rows_over_many_lines_have_the_line_they_begin_on(write: Write) -> None:
    text = '\r\n{\r\n"n": "a\u2028b"\r\n}\r\n\r\n{"n":\r\n2}{"n": 3}'
    assert numbers_of(write("a.jsonl", text)) == [2, 6, 7]
    assert numbers_of(write("b.jsonl", '{"n": 1} {"n": 2}\n{"n": 3}\n')) == [1, 1, 2]
    found = rows_of(write("c.jsonl", '{"n": 1} rest\n[{"n": 1}]\n{"n": 2} 3\n{"n": 3}\n'))
    assert [isinstance(row, Unreadable) for row in found] == [True, False, True, False]


def test_nan_is_a_number(write: Write) -> None:
    (row,) = rows_of(write("a.jsonl", '{"score": NaN, "best": Infinity}\n'))
    assert str(row["score"]) == "nan" and str(row["best"]) == "inf"


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


HUB = ["README.md", ".gitattributes", "dataset_infos.json", "data/._train-00000-of-00002.jsonl"]


def hub(write: Write, *names: str, card: str = "# Pairs\n") -> None:
    for name in (*HUB, *names):
        write(f"repo/{name}", json.dumps({"file": name}) + "\n")
    write("repo/README.md", card)


def names_of(path: Path, split: str = "train") -> list[str]:
    return [row["file"] for row in rows_of(path, split)]


def test_clones_of_hub_data_sets(write: Write, tmp_path: Path) -> None:
    train = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    hub(write, *train, "data/test-00000-of-00001.jsonl", "data/.cache/train-00000-of-00001.jsonl")
    repo = tmp_path / "repo"
    assert names_of(repo) == train
    assert names_of(repo, "test") == ["data/test-00000-of-00001.jsonl"]
    assert "no file named after the split 'dev'" in refusal(repo, "dev")
    assert open_source(str(repo), "train").name == "repo"
    assert len(open_source(str(repo), "train").fingerprint) == 2


def test_splits_of_like_names_are_not_mixed(write: Write, tmp_path: Path) -> None:
    names = [f"data/{split}-00000-of-00001.jsonl" for split in ("train_prefs", "train_sft")]
    hub(write, *names)
    assert names_of(tmp_path / "repo", "train_prefs") == names[:1]
    assert "has no split 'train' but train_prefs, train_sft (set --train-split" in refusal(
        tmp_path / "repo"
    )


def test_folders_named_after_splits_and_parts(write: Write, tmp_path: Path) -> None:
    hub(write, "harmless/train.jsonl", "harmless/test.jsonl", "helpful/train.jsonl")
    assert names_of(tmp_path / "repo") == ["harmless/train.jsonl", "helpful/train.jsonl"]
    hub(write, "train/0000.jsonl", "test/0000.jsonl")
    assert "train/0000.jsonl" in names_of(tmp_path / "repo")
    assert names_of(tmp_path / "repo", "test") == ["harmless/test.jsonl", "test/0000.jsonl"]


def test_files_of_the_folder_itself_come_before_nested_ones(write: Write, tmp_path: Path) -> None:
    hub(write, "pairs.jsonl", "old/pairs.jsonl", "_x.jsonl", ".hidden.jsonl", "__MACOSX/a.jsonl")
    assert names_of(tmp_path / "repo") == ["_x.jsonl", "pairs.jsonl"]


CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: "raw/a-*"
  - split: test
    path: ["raw/b.jsonl"]
- config_name: other
  data_files: raw/c.jsonl
---
# Pairs
"""


def test_a_hub_card_says_what_the_splits_are(write: Write, tmp_path: Path) -> None:
    hub(write, "raw/a-1.jsonl", "raw/a-2.jsonl", "raw/b.jsonl", "raw/c.jsonl", card=CARD)
    assert names_of(tmp_path / "repo") == ["raw/a-1.jsonl", "raw/a-2.jsonl"]
    assert names_of(tmp_path / "repo", "test") == ["raw/b.jsonl"]
    message = refusal(tmp_path / "repo", "dev")
    assert message.endswith("its README.md names train, test (set --train-split or --valid-split)")
    (tmp_path / "repo" / "raw" / "b.jsonl").unlink()
    assert "holds no file of split 'test', which its README.md says are raw/b.jsonl" in refusal(
        tmp_path / "repo", "test"
    )


@pytest.mark.parametrize(
    "card", ["", "---\n", "---\nconfigs: 3\n---\n", "---\n: [\n---\n", "---\nconfigs:\n- x\n---\n"]
)
def test_other_cards_say_nothing(card: str, write: Write, tmp_path: Path) -> None:
    hub(write, "train.jsonl", "test.jsonl", card=card)
    assert names_of(tmp_path / "repo") == ["train.jsonl"]


def test_links(write: Write, tmp_path: Path) -> None:
    blob = write("blobs/abc", JSONL)
    (tmp_path / "repo" / "data").mkdir(parents=True)
    (tmp_path / "repo" / "data" / "train-00000-of-00001.jsonl").symlink_to(blob)
    (tmp_path / "repo" / "loop").symlink_to(tmp_path / "repo")
    (tmp_path / "alias.jsonl").symlink_to(blob)
    assert rows_of(tmp_path / "repo") == rows_of(tmp_path / "alias.jsonl") == ROWS


@pytest.mark.parametrize("name", ["absent.jsonl.bz2", "absent.tsv", "absent.arrow"])
def test_missing_files_of_every_kind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_: pytest.fail("asked the hub"))
    assert refusal(name) == f"data file {name}: does not exist"


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
