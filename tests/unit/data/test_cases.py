"""Inputs that public bug reports are about, from the file to the text that is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from orpo_dist.cli import main
from orpo_dist.data import Columns, Encoder, PairDataset, prepare

KindDir = Callable[[str], Path]
ASKED = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
KIND = "<|im_start|>system\nBe kind.<|im_end|>\n" + ASKED


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


Q, YES, NO = said("user", "Why?"), said("assistant", "Because."), said("assistant", "No idea.")
SYSTEM = said("system", "Be kind.")
SIDES = {"chosen": [Q, YES], "rejected": [Q, NO]}
KIND_SIDES = {"chosen": [SYSTEM, Q, YES], "rejected": [SYSTEM, Q, NO]}
MISMATCHED = "mismatched_prompts"

# What stands in the row -> the prompt's text, or the reason why there is none.
PROMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "the question, sides with a system message": ({"prompt": [Q], **KIND_SIDES}, KIND),
    "a blank after the question": ({"prompt": [said("user", "Why? ")], **SIDES}, ASKED),
    "the system message alone": ({"prompt": [SYSTEM], **SIDES}, KIND),
    "the same conversation": ({"prompt": [SYSTEM, Q], **KIND_SIDES}, KIND),
    "another question, as messages": ({"prompt": [said("user", "How?")], **SIDES}, MISMATCHED),
    "another question, as text": ({"prompt": "How?", **SIDES}, MISMATCHED),
    "an empty text": ({"prompt": "", **SIDES}, ASKED),
    "an empty list": ({"prompt": [], **SIDES}, ASKED),
    "null": ({"prompt": None, **SIDES}, ASKED),
    "system and question in one text": ({"prompt": "Be kind. Why?", **KIND_SIDES}, KIND),
    "an answer by the user": (
        {"prompt": [Q], "chosen": [YES], "rejected": [said("user", "No idea.")]},
        MISMATCHED,
    ),
    "two system messages": (
        {"prompt": [said("system", "Be brief."), Q], **KIND_SIDES},
        MISMATCHED,
    ),
}
LAST = [said("user", "How are you?"), said("assistant", "Fine."), Q]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORPO_DIST_CACHE", str(tmp_path / "cache"))


def texts_of(pairs: PairDataset, tokenizer: Any) -> list[list[str]]:
    rows = (pairs[i] for i in range(len(pairs)))
    return [[tokenizer.decode(ids) for ids in (p.prompt, p.chosen, p.rejected)] for p in rows]


@pytest.mark.parametrize("case", PROMPTS)
def test_prompt_column_and_context_are_compared(
    case: str, tmp_path: Path, kind_dir: KindDir
) -> None:
    row, expected = PROMPTS[case]
    good = {"prompt": "Why?", "chosen": "Yes.", "rejected": "No."}
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, (row, good))), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(kind_dir("qwen-base"))
    found = prepare([str(path)], Encoder(tokenizer), Columns(), "train", progress=False)
    if expected == MISMATCHED:
        assert {k: v["count"] for k, v in found.report["skipped"].items()} == {MISMATCHED: 1}
        return
    assert texts_of(found, tokenizer)[0] == [expected, "Because.<|im_end|>", "No idea.<|im_end|>"]


def test_the_last_question_of_a_conversation(tmp_path: Path, kind_dir: KindDir) -> None:
    row = {"prompt": [Q], "chosen": [*LAST, YES], "rejected": [*LAST, NO]}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(kind_dir("qwen-base"))
    found = prepare([str(path)], Encoder(tokenizer), Columns(), "train", progress=False)
    assert texts_of(found, tokenizer)[0][0].count("Why?") == 1
    assert texts_of(found, tokenizer)[0][0].startswith("<|im_start|>user\nHow are you?")


def whole(answer: str) -> str:
    return json.dumps([Q, said("assistant", answer)])


FILES = {
    "json in JSON lines": (
        "pairs.jsonl",
        json.dumps({"prompt": "Why?", "chosen": whole("Because."), "rejected": whole("No idea.")}),
    ),
    "the same without a prompt": (
        "pairs.jsonl",
        json.dumps({"chosen": whole("Because."), "rejected": whole("No idea.")}),
    ),
    "pandas' repr in CSV": ("pairs.csv", f'chosen,rejected\n"{[Q, YES]}","{[Q, NO]}"\n'),
    "numpy's repr in CSV": (
        "pairs.csv",
        f'chosen,rejected\n"[{Q}\n {YES}]","[{Q}\n {NO}]"\n',
    ),
    "one message in a cell": (
        "pairs.csv",
        "prompt,chosen,rejected\nWhy?,"
        + ",".join('"' + json.dumps(one).replace('"', '""') + '"' for one in (YES, NO))
        + "\n",
    ),
    "tab-separated": ("pairs.tsv", "prompt\tchosen\trejected\nWhy?\tBecause.\tNo idea.\n"),
}


@pytest.mark.parametrize("case", FILES)
def test_messages_that_were_written_as_text(case: str, tmp_path: Path, kind_dir: KindDir) -> None:
    name, content = FILES[case]
    (tmp_path / name).write_text(content, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(kind_dir("qwen-base"))
    paths = [str(tmp_path / name)]
    found = prepare(paths, Encoder(tokenizer), Columns(), "train", progress=False)
    assert texts_of(found, tokenizer) == [[ASKED, "Because.<|im_end|>", "No idea.<|im_end|>"]]


def test_one_message_as_a_struct_of_parquet(tmp_path: Path, kind_dir: KindDir) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(
        pa.Table.from_pylist([{"prompt": "Why?", "chosen": YES, "rejected": NO}]),
        tmp_path / "pairs.parquet",
    )
    tokenizer = AutoTokenizer.from_pretrained(kind_dir("qwen-base"))
    paths = [str(tmp_path / "pairs.parquet")]
    found = prepare(paths, Encoder(tokenizer), Columns(), "train", progress=False)
    assert texts_of(found, tokenizer) == [[ASKED, "Because.<|im_end|>", "No idea.<|im_end|>"]]


def test_a_question_column_is_never_replaced_by_what_the_answers_share(
    tmp_path: Path, kind_dir: KindDir, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": "What is 2+2?", "chosen": "The answer is 4.", "rejected": "The answer is 5."},
        {"question": "And 3+3?", "chosen": "The answer is 6.", "rejected": "The answer is 7."},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = ["train", "--model", str(kind_dir("qwen-base")), "--data-path", str(path)]
    assert main([*command, "--project-name", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "question" in error and "--prompt-text-column" in error and error.count("\n") == 1


def test_the_schema_of_orca_is_read(tmp_path: Path, kind_dir: KindDir) -> None:
    row = {"system": "Be kind.", "question": "Why?", "chosen": "Because.", "rejected": "No idea."}
    rows = [row, {**row, "system": ""}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(kind_dir("qwen-base"))
    found = prepare([str(path)], Encoder(tokenizer), Columns(), "train", progress=False)
    assert [texts[0] for texts in texts_of(found, tokenizer)] == [KIND, ASKED]


@pytest.mark.parametrize("form", ["plain", "messages"])
def test_the_built_in_template_is_saved_only_where_it_was_used(
    form: str, tmp_path: Path, kind_dir: KindDir
) -> None:
    row = {"prompt": "Why?" if form == "plain" else [Q], "chosen": "Because.", "rejected": "No."}
    path, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    path.write_text(json.dumps(row), encoding="utf-8")
    command = ["train", "--model", str(kind_dir("notemplate")), "--data-path", str(path)]
    assert main([*command, "--project-name", str(run), "--max-steps", "1"]) == 0
    saved = AutoTokenizer.from_pretrained(run).chat_template
    assert (saved is None) == (form == "plain")
    assert (run / "chat_template.jinja").exists() == (form == "messages")
