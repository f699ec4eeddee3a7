"""Evaluation: figures against hand-made ones, text against plain forward passes, the command."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from orpo_dist import UserError, evaluate_model, load
from orpo_dist.cli import main
from orpo_dist.evaluation import ScoreTable, evaluate_models
from orpo_dist.evaluation.paired import compare, holm
from orpo_dist.evaluation.perplexity import TextSettings, windows
from orpo_dist.evaluation.statistics import (
    calibration,
    distribution,
    headline,
    length_bias,
    summarise,
)
from orpo_dist.evaluation.terminal import comparison_sentence, format_evaluation
from tests.conftest import DEMO

EVAL = str(DEMO / "eval.jsonl")


def table(chosen: Any, rejected: Any, lengths: Any = None) -> ScoreTable:
    chosen, rejected = np.asarray(chosen, float), np.asarray(rejected, float)
    lengths = np.full((len(chosen), 3), 4) if lengths is None else np.asarray(lengths)
    nll = -chosen * lengths[:, 1]
    return ScoreTable.of(
        lengths, {"chosen_logp": chosen, "rejected_logp": rejected, "nll_sum": nll}
    )


@pytest.fixture
def other_model_dir(other_model_dirs: list[Path]) -> Path:
    return other_model_dirs[0]


def test_headline_by_hand() -> None:
    found = summarise(table([-1, -2, -3], [-2, -1, -4], [[9, 2, 5], [9, 4, 5], [9, 6, 5]]))
    assert found["preference_accuracy"] == pytest.approx(2 / 3)
    assert found["mean_margin"] == pytest.approx(1 / 3)
    assert found["perplexity"] == pytest.approx(math.exp((1 * 2 + 2 * 4 + 3 * 6) / 12))
    odds = [math.exp(x) / (1 - math.exp(x)) for x in (-1, -2, -2, -1, -3, -4)]
    ratios = [math.log(odds[i] / odds[i + 1]) for i in (0, 2, 4)]
    assert found["mean_log_odds"] == pytest.approx(sum(ratios) / 3)
    assert found["margin"]["quantiles"]["50"] == pytest.approx(1)
    assert sum(found["log_odds"]["histogram"]["counts"]) == 3


def test_distribution_of_equal_values() -> None:
    found = distribution(np.full(5, 2.0))
    assert (found["mean"], found["sd"], found["quantiles"]["95"]) == (2, 0, 2)


def test_length_bias_tells_a_model_that_goes_by_length() -> None:
    """Right wherever the longer answer is the chosen one, wrong elsewhere."""
    longer = np.array([True] * 30 + [False] * 20)
    lengths = np.stack([np.full(50, 5), np.where(longer, 9, 3), np.where(longer, 3, 9)], 1)
    found = length_bias(table(np.where(longer, -1, -2), np.where(longer, -2, -1), lengths))
    assert found["longer_chosen"]["preference_accuracy"] == 1
    assert found["longer_rejected"]["preference_accuracy"] == 0
    assert (found["longer_chosen"]["pairs"], found["longer_rejected"]["pairs"]) == (30, 20)
    assert found["gap"] == 1 and found["gap_low"] > 0.75
    assert found["spearman"] == pytest.approx(1)
    assert found["equal"] == {
        "pairs": 0, "preference_accuracy": None, "accuracy_low": 0.0, "accuracy_high": 1.0
    }  # fmt: skip


def test_length_bias_without_both_kinds() -> None:
    found = length_bias(table([-1, -1], [-2, -3]))
    assert found["gap"] is None and found["spearman"] is None


def test_calibration_of_a_calibrated_and_of_a_boastful_model() -> None:
    rng = np.random.default_rng(0)
    log_odds = rng.normal(0.5, 1.5, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-np.abs(log_odds)))
    signs = np.where(right, 1, -1)

    def with_log_odds(values: np.ndarray) -> ScoreTable:
        chosen = np.where(signs > 0, -1.0, -2.0)
        made = table(chosen, -3 - chosen)
        return ScoreTable(**{**vars(made), "log_odds": values})

    honest = calibration(with_log_odds(signs * np.abs(log_odds)))
    assert honest["expected_error"] < 0.02
    boastful = calibration(with_log_odds(signs * np.abs(log_odds) * 5))
    assert boastful["expected_error"] > 0.15
    assert boastful["brier"] > honest["brier"]
    assert sum(part["pairs"] for part in honest["bins"]) == 20_000


def test_comparison_by_hand() -> None:
    """Nine pairs that only one gets right, eight of them the second: 2 (1 + 9) / 2**9."""
    first = table([-2] * 8 + [-1] * 5, [-1] * 8 + [-2] * 5)
    second = table([-1] * 8 + [-2] + [-1] * 4, [-2] * 8 + [-1] + [-2] * 4)
    found = compare(first, second)
    assert (found["only_first"], found["only_second"]) == (1, 8)
    assert (found["both"], found["neither"]) == (4, 0)
    assert found["p_value"] == pytest.approx(2 * (1 + 9) / 2**9)
    assert found["accuracy_difference"] == pytest.approx(7 / 13)
    low, high = (found[f"accuracy_difference_{end}"] for end in ("low", "high"))
    assert 0 < low < 7 / 13 < high < 1
    assert found["margin_difference"] == pytest.approx((8 * 2 - 2) / 13)
    swapped = compare(second, first)
    assert swapped["p_value"] == found["p_value"]
    assert swapped["accuracy_difference"] == -found["accuracy_difference"]


def test_a_model_against_itself_is_no_better() -> None:
    found = compare(table([-1, -2], [-2, -1]), table([-1, -2], [-2, -1]))
    assert found["p_value"] == 1 and found["accuracy_difference"] == 0
    assert found["accuracy_difference_low"] < 0 < found["accuracy_difference_high"]  # of two pairs


def test_one_pair_proves_nothing() -> None:
    better, worse = table([-1.0], [-2.0]), table([-2.0], [-1.0])
    found = compare(worse, better)
    assert found["accuracy_difference"] == 1 and found["p_value"] == 1
    assert found["accuracy_difference_low"] <= 0 and found["accuracy_difference_high"] == 1
    assert found["margin_difference_low"] is found["margin_difference_high"] is None
    entry = {**found, "first": "a", "second": "b", "p_adjusted": 1.0}
    sentence = comparison_sentence(entry, ["a", "b"])
    assert sentence.endswith("margin +2.000 (one of them: no interval)")


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


@given(st.integers(2, 300), st.integers(2, 50), st.data())
def test_windows_score_every_token_but_the_first_once(
    tokens: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    scored = []
    for begin, end, count in windows(tokens, window, stride):
        assert end - begin <= window and 1 <= count < end - begin + (begin > 0)
        assert begin == 0 or end - count - begin >= window - stride
        scored += range(end - count, end)
    assert scored == list(range(1, tokens))


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_text_perplexity_is_that_of_plain_forward_passes(
    attention: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    text = (DEMO / "eval.jsonl").read_text(encoding="utf-8")[:1500]
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    handle = load(tiny_model_dir)
    handle.config = handle.config.replace(attention=attention)
    settings = TextSettings((str(path),), window=100, stride=40)
    found = evaluate_model(handle, [], texts=settings, progress=False)["texts"][0]
    ids = torch.tensor(handle.tokenizer(text, add_special_tokens=False)["input_ids"])
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    nll = []
    with torch.no_grad():
        for at in range(1, len(ids)):  # the window that scores this token first
            begin = 0 if at < 100 else 40 * math.ceil((at - 99) / 40)
            seen = ids[None, begin : at + 1]
            nll.append(-plain(seen[:, :-1]).logits[0, -1].log_softmax(-1)[ids[at]].item())
    assert found["tokens"] == len(nll)
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
    bits = sum(nll) / math.log(2) / len(text.encode())
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_several_models_as_json_page_and_table(
    tiny_model_dir: Path, other_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "<i>$x$"
    evil.symlink_to(other_model_dir)
    words = ["evaluate", str(tiny_model_dir), str(evil), "--data-path", EVAL, "--json",
             str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]  # fmt: skip
    assert main([*words, "--text", EVAL]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["models"]) == [str(tiny_model_dir), str(evil)]
    (comparison,) = found["comparisons"]
    assert comparison["pairs"] == 64 and 0 < comparison["p_value"] <= 1
    assert comparison["p_adjusted"] == comparison["p_value"]
    alone = evaluate_model(other_model_dir, EVAL, progress=False)
    assert found["models"][str(evil)]["margin"] == alone["margin"]
    apart = alone["mean_margin"] - found["models"][str(tiny_model_dir)]["mean_margin"]
    assert comparison["margin_difference"] == pytest.approx(apart, abs=1e-6)
    page = (tmp_path / "out.html").read_text()
    assert page.count("<svg") == 3 and "<script" not in page
    assert "<i>" not in page and "&lt;i&gt;$x$" in page
    said = capsys.readouterr().out
    assert "McNemar p" in said and "bits per byte" in said


def test_models_that_skip_different_rows_are_not_compared(
    tiny_model_dir: Path, other_model_dir: Path, tmp_path: Path, write_rows: Any
) -> None:
    """<|im_end|> is the end of the one tokenizer and plain text to the other."""
    rows = [{"prompt": "a", "chosen": f"b{i}", "rejected": "<|im_start|> c"} for i in range(4)]
    rows[1]["rejected"] = "x <|im_end|> y"
    data = write_rows(rows)
    tokenizer = AutoTokenizer.from_pretrained(other_model_dir)
    tokenizer.eos_token = "<pad>"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<pad>")
    copy = tmp_path / "copy"
    AutoModelForCausalLM.from_pretrained(other_model_dir).save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    found = evaluate_models([str(tiny_model_dir), str(copy)], str(data), progress=False)
    (comparison,) = found["comparisons"]
    assert set(comparison) == {"first", "second", "why_not"}


def test_a_category_called_all_and_long_ones_are_rows_of_their_own() -> None:
    part = headline(table([-1, -2], [-2, -3]))
    names = ["all", "a category with a rather long name", "a category with a rather long tail"]
    result = {**summarise(table([-1, -2], [-2, -1])), "categories": dict.fromkeys(names, part)}
    lines = format_evaluation(result).splitlines()
    assert [line.partition("  ")[0] for line in lines[1:5]] == ["all", *names]
    assert "0.500" in lines[1] and "1.000" in lines[2]


def test_what_is_cut_for_a_further_model_only_is_said_with_its_name(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_model_dir, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 48}))
    words = ["evaluate", str(tiny_model_dir), str(short), "--data-path", EVAL]
    with caplog.at_level("WARNING"):
        assert main(words) == 0
    assert f"{short}: skipped 3 of 64 rows" in caplog.messages[-3]
    assert not any(message.startswith(f"{tiny_model_dir}:") for message in caplog.messages)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--text", "./nowhere.txt"], "text ./nowhere.txt: cannot be read"),
        (
            ["--text", EVAL, "--text-window", "1000"],
            "text-window 1000: is over the model's context",
        ),
        (["--text", EVAL, "--text-window", "9", "--text-stride", "9"], "text-stride 9: must be"),
        (["--text", EVAL, "--text-window", "0"], "text-window 0: must be at least 2 tokens"),
        (["--text", EVAL, "--text-stride", "0"], "text-stride 0: must be at least 1"),
        ([], "data_path is missing"),
        (["--data-path", EVAL, "--json", "a/b/c.json"], "json a/b/c.json: its folder"),
        (["--data-path", EVAL, "--json", "./x", "--html", "./x"], "same file"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], part: str, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tiny_model_dir), *words]) == 2
    captured = capsys.readouterr()
    assert part in captured.err and captured.err.count("\n") == 1


def test_the_same_model_twice_is_a_mistake(tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match="is given twice"):
        evaluate_models([str(tiny_model_dir), f"{tiny_model_dir}/."], EVAL)


def test_standard_tasks_through_the_harness(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A task of our own over a local file: the tasks that the harness ships need a network."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    rows = [{"question": f"{i} + {i} =", "answers": [f" {2 * i}", " blue"]} for i in range(6)]
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\noutput_type: multiple_choice\ntest_split: train\n"
        f"dataset_kwargs: {{data_files: {data}}}\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{answers}}"\ndoc_to_target: 0\n'
        "metric_list: [{metric: acc}]\n"
    )
    out = tmp_path / "out.json"
    words = ["--tasks", "sums", "--tasks-path", str(tmp_path), "--json", str(out)]
    assert main(["evaluate", str(tiny_model_dir), *words]) == 0
    found = json.loads(out.read_text())["tasks"]["sums"]
    handle = load(tiny_model_dir)

    def logp(text: str) -> float:
        ids = torch.tensor([handle.tokenizer(text, add_special_tokens=False)["input_ids"]])
        logps = handle.model(ids).logits[0, :-1].log_softmax(-1)
        return float(logps.gather(1, ids[0, 1:, None]).sum())

    right = [logp(r["question"] + r["answers"][0]) > logp(r["question"] + r["answers"][1])
             for r in rows]  # fmt: skip
    assert found["acc,none"] == pytest.approx(np.mean(right))
