"""Folders: which of their files are the split that was asked for."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from orpo_dist.data.sources import open_source
from tests.unit.data.written import JSONL, ROWS, TALK, Write, parquet_of, refusal, rows_of


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
