"""Rows out of every kind of file, with the place where people find them again."""

from __future__ import annotations

import os
from typing import Any

import pytest

from orpo_dist.base.types import TemporaryFailure, UserError
from orpo_dist.data.sources import open_source
from tests.unit.data.written import JSONL, ROWS, Write, refusal


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


@pytest.mark.parametrize("name", ["absent.jsonl.bz2", "absent.tsv", "absent.arrow"])
def test_missing_files_of_every_kind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_: pytest.fail("asked the hub"))
    assert refusal(name) == f"data file {name}: does not exist"


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
