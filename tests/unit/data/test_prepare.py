"""Files -> pairs: every row counted, every cut counted, and nothing tokenised twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_dist.base.types import Pair, UserError
from orpo_dist.data import Columns, Encoder, Limits, PairDataset, build, prepare
from orpo_dist.data.reasons import REASONS
from orpo_dist.data.report import FIRST_OFFENDERS, skip_sentence
from orpo_dist.data.sources import open_source
from tests.unit.encoding import FUSSY_TEMPLATE, ids_of

COLUMNS = Columns()
WriteRows = Callable[..., Path]

GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."}
TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
OTHER = [{"role": "user", "content": "R"}, {"role": "assistant", "content": "B"}]
PLANTED: dict[str, Any] = {
    "not_json": '{"prompt": "Why?", ',
    "not_an_object": [1, 2],
    "missing_column": {"prompt": "Why?", "chosen": "yes"},
    "wrong_type": {**GOOD, "chosen": 3},
    "not_text": {**GOOD, "images": ["cat.png"]},
    "broken_text": {**GOOD, "rejected": "half \ud83d"},
    "unknown_role": {**GOOD, "prompt": [{"role": "narrator", "content": "Why?"}]},
    "empty_prompt": {**GOOD, "prompt": " "},
    "empty_chosen": {**GOOD, "chosen": ""},
    "empty_rejected": {**GOOD, "rejected": None},
    "identical_answers": {**GOOD, "rejected": "Because."},
    "mismatched_prompts": {"chosen": TALK, "rejected": OTHER},
    "no_prompt": {"chosen": "yes", "rejected": "no"},
    "template_refused": {**GOOD, "prompt": [{"role": "system", "content": "Be good."}]},
    "foreign_marks": {**GOOD, "prompt": "<start_of_turn>user\nWhy?<end_of_turn>\n"},
    "special_inside": {**GOOD, "prompt": "What is <|im_end|>?"},
    "same_when_rendered": {
        **GOOD,
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
        "rejected": [{"role": "assistant", "content": "", "tool_calls": [{"name": "g"}]}],
    },
    "over_length": {**GOOD, "chosen": "Because " * 30},
    "end_inside": {**GOOD, "rejected": "No<|im_end|> idea."},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ORPO_DIST_CACHE", str(folder))
    return folder


@pytest.fixture
def encoded_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that were tokenised since the test began."""
    sizes: list[int] = []
    encode = Encoder.encode

    def counting(self: Encoder, examples: Any) -> Any:
        sizes.append(len(examples))
        return encode(self, examples)

    monkeypatch.setattr(Encoder, "encode", counting)
    return sizes


def read(path: Path | list[Path], encoder: Encoder, **options: Any) -> PairDataset:
    paths = [str(one) for one in (path if isinstance(path, list) else [path])]
    options = {"columns": COLUMNS, "split": "train", "progress": False, **options}
    return prepare(paths, encoder, **options)


def test_planted_defects_are_counted_by_reason(write_rows: WriteRows, tokenizer: Any) -> None:
    elsewhere = {"no_difficulty", "no_shared_prompt", "unranked", "serialised"}
    assert {*PLANTED, *elsewhere} == set(REASONS)
    path = write_rows([GOOD, *PLANTED.values(), {**GOOD, "category": "last"}])
    encoder = Encoder(tokenizer, FUSSY_TEMPLATE, Limits(completion=20, skip_overlong=True))
    report = read(path, encoder).report
    assert set(report["skipped"]) == set(PLANTED)
    for line, reason in enumerate(PLANTED, start=2):
        entry = report["skipped"][reason]
        assert (entry["count"], entry["meaning"]) == (1, REASONS[reason])
        assert [first.partition(", ")[0] for first in entry["first"]] == [f"{path}:{line}"]
    assert (report["rows"], report["pairs"]) == (len(PLANTED) + 2, 2)
    assert report["sources"] == [{"path": str(path), "rows": len(PLANTED) + 2, "pairs": 2}]
    assert report["categories"] == {"": 1, "last": 1}
    sentence = skip_sentence(report)
    assert sentence.startswith(f"skipped {len(PLANTED)} of {len(PLANTED) + 2} rows: 1 × ")
    assert all(f"{REASONS[reason]} (first: {path}:" in sentence for reason in PLANTED)


def test_only_the_first_offenders_are_listed(write_rows: WriteRows, tokenizer: Any) -> None:
    path = write_rows([PLANTED["not_json"], *[PLANTED["empty_chosen"]] * 8, GOOD])
    report = read(path, Encoder(tokenizer)).report
    entry = report["skipped"]["empty_chosen"]
    assert entry["count"] == 8
    assert entry["first"] == [f"{path}:{line}" for line in range(2, 2 + FIRST_OFFENDERS)]
    assert skip_sentence(report) == (
        f"skipped 9 of 10 rows: 8 × the chosen answer is empty (first: {path}:2); "
        f"1 × the line is not JSON (first: {path}:1)"
    )
    assert skip_sentence(read(write_rows([GOOD]), Encoder(tokenizer)).report) == ""


@pytest.mark.parametrize("reason", PLANTED)
def test_strict_data_stops_at_the_first_offender(
    reason: str, write_rows: WriteRows, tokenizer: Any
) -> None:
    path = write_rows([GOOD, "", PLANTED[reason], PLANTED[reason]])
    encoder = Encoder(tokenizer, FUSSY_TEMPLATE, Limits(completion=20, skip_overlong=True))
    read(path, encoder)
    with pytest.raises(UserError) as caught:  # also where a lenient run has filled the cache
        read(path, encoder, strict=True)
    assert str(caught.value).startswith(f"{path}:3: {REASONS[reason]}")
    assert str(caught.value).endswith(" (strict_data is on)")


def test_strict_data_accepts_clean_files(
    write_rows: WriteRows, tokenizer: Any, encoded_batches: list[int]
) -> None:
    path = write_rows([GOOD])
    assert len(read(path, Encoder(tokenizer), strict=True)) == 1
    assert len(read(path, Encoder(tokenizer), strict=True)) == 1
    assert encoded_batches == [1]


@pytest.mark.parametrize(
    ("row", "column", "flag", "hint"),
    [
        ({"prompt": "Q", "better": "a", "rejected": "b"}, "chosen", "--text-column", " better"),
        ({"prompt": "Q", "chosen": "a", "x": "b"}, "rejected", "--rejected-text-column", ""),
    ],
)
def test_a_missing_column_is_named_with_the_columns_there_are(
    row: dict[str, str], column: str, flag: str, hint: str, write_rows: WriteRows, tokenizer: Any
) -> None:
    path = write_rows([row, row])
    with pytest.raises(UserError) as caught:
        read(path, Encoder(tokenizer))
    assert str(caught.value) == (
        f"{path}: has no column '{column}'; its columns are {', '.join(row)} (set {flag}{hint})"
    )
    columns = Columns(chosen="better" if "better" in row else "chosen", rejected=list(row)[2])
    assert len(read(path, Encoder(tokenizer), columns=columns)) == 2


def test_nothing_usable(write_rows: WriteRows, tokenizer: Any, cache: Path) -> None:
    path = write_rows([PLANTED["empty_chosen"], PLANTED["not_json"], PLANTED["empty_chosen"]])
    with pytest.raises(UserError) as caught:
        read(path, Encoder(tokenizer))
    assert str(caught.value) == (
        f"{path}: no usable pair (2 × the chosen answer is empty, first {path}:1; "
        f"1 × the line is not JSON, first {path}:2)"
    )
    assert not list(cache.rglob("*.npy"))


def test_pairs_come_in_the_order_of_the_file(write_rows: WriteRows, tokenizer: Any) -> None:
    rows = [{"prompt": f"Q{i}", "chosen": f"oh yes {i}", "rejected": f"no {i}"} for i in range(600)]
    rows[300]["chosen"] = ""
    pairs = read(write_rows(rows), Encoder(tokenizer, "none"))
    assert len(pairs) == 599
    end = [tokenizer.eos_token_id]
    for index, number in ((0, 0), (255, 255), (256, 256), (299, 299), (300, 301), (598, 599)):
        prompt, yes, no = (ids_of(tokenizer, f"{w}{number}") for w in ("Q", "oh yes ", "no "))
        assert pairs[index] == Pair(prompt, yes + end, no + end, "")


def test_the_second_call_reads_the_cache(
    write_rows: WriteRows, tokenizer: Any, encoded_batches: list[int], cache: Path
) -> None:
    path = write_rows([GOOD, PLANTED["empty_chosen"], {**GOOD, "category": "x"}])
    first = read(path, Encoder(tokenizer))
    again = read(path, Encoder(tokenizer))
    assert encoded_batches == [2]
    assert [again[i] for i in range(2)] == [first[i] for i in range(2)]
    assert again.report == first.report
    assert [entry.name[0] for entry in (cache / "pairs").iterdir()] != ["."]
    assert len(list((cache / "pairs").iterdir())) == 1


@pytest.mark.parametrize(
    "change", ["file", "limits", "skip", "template", "plain", "columns", "split"]
)
def test_what_changes_the_pairs_changes_the_cache_entry(
    change: str, write_rows: WriteRows, tokenizer: Any, encoded_batches: list[int]
) -> None:
    row = {**GOOD, "better": "Indeed."}
    path = write_rows([row])
    read(path, Encoder(tokenizer, None, Limits(completion=50)))
    options: dict[str, Any] = {}
    limits, template = Limits(completion=50), None
    if change == "file":
        write_rows([{**row, "prompt": "Who?"}])
    elif change == "limits":
        limits = Limits(completion=51)
    elif change == "skip":
        limits = Limits(completion=50, skip_overlong=True)
    elif change in ("template", "plain"):
        template = FUSSY_TEMPLATE if change == "template" else "none"
    elif change == "columns":
        options["columns"] = Columns(chosen="better")
    else:
        options["split"] = "test"
    read(path, Encoder(tokenizer, template, limits), **options)
    assert encoded_batches == [1, 1]


def test_a_cache_that_cannot_be_written_is_done_without(
    write_rows: WriteRows, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ORPO_DIST_CACHE", str(tmp_path / "file"))
    assert len(read(write_rows([GOOD]), Encoder(tokenizer))) == 1


def test_several_sources_are_categories_of_their_own(write_rows: WriteRows, tokenizer: Any) -> None:
    math = write_rows([GOOD, {**GOOD, "category": "hard"}, GOOD], "math.jsonl")
    chat = write_rows([PLANTED["not_json"], GOOD], "chat.v2.jsonl")
    pairs = read([math, chat], Encoder(tokenizer))
    assert [pairs[i].category for i in range(4)] == ["math", "hard", "math", "chat"]
    assert pairs.source_ids.tolist() == [0, 0, 0, 1]
    assert pairs.report["categories"] == {"math": 2, "hard": 1, "chat": 1}
    assert pairs.report["sources"] == [
        {"path": str(math), "rows": 3, "pairs": 3},
        {"path": str(chat), "rows": 2, "pairs": 1},
    ]
    assert [read(math, Encoder(tokenizer))[i].category for i in range(3)] == ["", "hard", ""]


def test_datasets_are_the_same_after_a_round_trip(
    write_rows: WriteRows, tokenizer: Any, tmp_path: Path, demo_rows: list[dict[str, str]]
) -> None:
    source = open_source(str(write_rows([*demo_rows[:9], {}])), "train")
    made = build([source], Encoder(tokenizer, None, Limits(prompt=20)), COLUMNS, progress=False)
    made.save(tmp_path / "saved")
    loaded = PairDataset.load(tmp_path / "saved")
    assert len(loaded) == len(made) == 9
    assert [loaded[i] for i in range(9)] == [made[i] for i in range(9)]
    assert {pair.category for pair in map(loaded.__getitem__, range(9))} == {
        row["category"] for row in demo_rows[:9]
    }
    assert loaded.report == made.report == json.loads(json.dumps(made.report))
    for name in ("tokens", "lengths", "category_ids", "source_ids"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(made, name))
        assert getattr(loaded, name).dtype == np.int32
    assert isinstance(loaded.tokens, np.memmap)
    with pytest.raises(FileExistsError):
        made.save(tmp_path / "saved")


def test_a_damaged_cache_entry_is_made_again(
    write_rows: WriteRows, tokenizer: Any, cache: Path
) -> None:
    path = write_rows([GOOD])
    first = read(path, Encoder(tokenizer))
    (tokens,) = cache.rglob("tokens.npy")
    tokens.write_bytes(b"broken")
    assert read(path, Encoder(tokenizer))[0] == first[0]
    assert read(path, Encoder(tokenizer))[0] == first[0]


def test_a_prompt_column_asked_for_by_name_must_be_there(
    write_rows: WriteRows, tokenizer: Any
) -> None:
    path = write_rows([GOOD])
    with pytest.raises(UserError, match=r"no column .promt.*--prompt-text-column"):
        read(path, Encoder(tokenizer), columns=Columns(prompt="promt"))


ORCA = {"system": "S", "question": "Why?", "chosen": "Because.", "rejected": "No idea."}


def test_the_form_is_reported_and_said_in_every_run(
    write_rows: WriteRows, tokenizer: Any, encoded_batches: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    path = write_rows([{**ORCA, "context": "X"}, ORCA])
    said = [
        f"{path}: read as Orca DPO pairs (system + question → prompt)",
        f"{path}: column 'context' (1 of 2 rows) is not used; put it into the prompt if the "
        "answers need it",
    ]
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        report = read(path, Encoder(tokenizer)).report
        assert [sentence for _, sentence in report["said"]] == caplog.messages == said
    assert encoded_batches == [2]


def test_no_prompt_is_made_up(write_rows: WriteRows, tokenizer: Any) -> None:
    rows = [{**ORCA, "chosen": "The answer is 4.", "rejected": "The answer is 5."}]
    path = write_rows([{k: row[k] for k in row if k != "system"} for row in rows])
    with pytest.raises(UserError) as caught:
        read(path, Encoder(tokenizer))
    assert str(caught.value) == (
        f"{path}: has no column 'prompt'; there is a column 'question': set --prompt-text-column "
        "question"
    )
    assert len(read(path, Encoder(tokenizer), columns=Columns(prompt="question"))) == 1


def test_ranked_lists_are_pairs_of_one_row(write_rows: WriteRows, tokenizer: Any) -> None:
    answers = [{"answer": text, "rank": n} for n, text in enumerate(("a", "b", "c"), start=1)]
    path = write_rows([{"prompt": "Why?", "answers": answers}, {"prompt": "Q", "answers": []}])
    report = read(path, Encoder(tokenizer)).report
    assert (report["pairs"], report["rows"]) == (2, 3)
    assert report["skipped"]["unranked"]["first"] == [f"{path}:2"]
    with pytest.raises(UserError, match=r":2: no answer of the list is ranked above another"):
        read(path, Encoder(tokenizer), strict=True)


def test_a_lower_score_is_counted(write_rows: WriteRows, tokenizer: Any) -> None:
    worse = {**GOOD, "score_chosen": 3, "score_rejected": 8}
    better = {**GOOD, "score_chosen": 8, "score_rejected": 3}
    path = write_rows([better, worse, {**worse, "chosen": ""}, worse])
    notes = read(path, Encoder(tokenizer)).report["notes"]
    assert notes["lower_score"]["count"] == 2
    assert notes["lower_score"]["first"] == [f"{path}:2", f"{path}:4"]


def test_rows_in_memory_are_read_the_same_way(tokenizer: Any) -> None:
    from orpo_dist import ORPOConfig
    from orpo_dist.data import as_pairs

    assert len(as_pairs([ORCA], Encoder(tokenizer), ORPOConfig())) == 1
    config = ORPOConfig(data_format="alpaca")
    with pytest.raises(UserError, match=r"^dataset: data_format alpaca needs instruction"):
        as_pairs([ORCA], Encoder(tokenizer), config)
    row = {"instruction": "I", "input": "X", "chosen": "a", "rejected": "b"}
    assert len(as_pairs([row], Encoder(tokenizer), config)) == 1


def test_without_a_prompt_limit_the_answers_keep_room(
    write_rows: WriteRows, tokenizer: Any
) -> None:
    row = {"prompt": "word " * 100, "chosen": "yes " * 6, "rejected": "no " * 8}
    dataset = read(write_rows([row]), Encoder(tokenizer, limits=Limits(sequence=60)))
    assert dataset.report["truncated"]["chosen"]["count"] == 0
    assert dataset.report["truncated"]["rejected"]["count"] == 0
    assert len(dataset[0].prompt) + max(len(dataset[0].chosen), len(dataset[0].rejected)) == 60
