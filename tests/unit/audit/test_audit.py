"""Every rule of the audit: on data where it must fire, and on data like them where it must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import ORPOConfig, UserError
from orpo_dist.audit.audit import Audit, audit
from orpo_dist.audit.rules import DROPPED, MANY_CUT, RULES
from orpo_dist.data import Limits
from tests.unit.encoding import BOS_TEMPLATE, FUSSY_TEMPLATE, with_bos

WriteRows = Callable[..., Path]
SOLAR = (
    "The sun is a star in the middle of our planetary system, and its light takes about eight "
    "minutes to reach the surface of the earth, where plants turn it into food for everyone."
)
RIVER = (
    "A river begins where water from rain, snow or springs gathers in a small stream, and it "
    "grows with every other stream that joins it until it meets a lake or the open sea."
)
BREAD = (
    "Bread needs flour, water, salt and yeast, and above all time, because the dough has to rise "
    "twice before it goes into a very hot oven for a little more than half an hour."
)

TOKYO = (
    "東京都は日本の首都であり、世界でも最大級の都市の一つで、多くの人が毎日電車で通勤しています。"
    "夏は暑くて湿気が高く、冬は晴れる日が続きます。"
)


def row(prompt: Any, chosen: Any, rejected: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def question(number: int) -> str:
    return f"Question {number}: what is the {number}th word of poem {number * 7}?"


def clean_rows(count: int = 40) -> list[dict[str, Any]]:
    """Pairs that no rule may flag; either answer is the longer one equally often."""
    return [
        row(
            question(n),
            f"It is w{n}{' indeed' * (n % 2)}.",
            f"Maybe v{n}{' perhaps' * (1 - n % 2)}.",
        )
        for n in range(count)
    ]


def messages(*turns: str) -> list[dict[str, str]]:
    """``messages("user: Hi", ...)``."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def look(
    write_rows: WriteRows, rows: list[Any], held_out: list[Any] | None = None, **more: Any
) -> Audit:
    settings: dict[str, Any] = {"data_path": str(write_rows(rows))}
    if held_out is not None:
        settings["valid_data_path"] = str(write_rows(held_out, "held_out.jsonl"))
    tokenizer, limits = more.pop("tokenizer", None), more.pop("limits", None)
    return audit(ORPOConfig(**settings, **more), tokenizer, limits)


def flagged(found: Audit) -> dict[str, list[int]]:
    """Rule -> the rows (from 0) it flagged."""
    return {finding.rule: list(finding.rows) for finding in found.findings}


def test_clean_data_fire_no_rule(write_rows: WriteRows, tokenizer: Any) -> None:
    found = look(write_rows, clean_rows(), clean_rows(60)[40:], tokenizer=tokenizer)
    assert flagged(found) == {}
    assert found.figures["left_out"] == []
    assert found.figures["pairs"] == 40


FAR = {"reached": "gets", "surface": "top", "plants": "trees", "food": "fuel", "minutes": "days"}


def one_word(text: str) -> str:
    return text.replace("above all", "most of all").replace("in the middle", "at the middle")


def rewritten(text: str) -> str:
    for old, new in FAR.items():
        text = text.replace(old, new)
    return text


# rule, rows, which of them it must flag
FIRES = [
    ("duplicate", [row("Q", "yes", "no"), row("Q ", " yes\n", "no")], [1]),
    ("duplicate", [row("Q", "yes", "no"), row(messages("user: Q"), "yes", "no")], [1]),
    ("near_duplicate", [row(SOLAR, RIVER, BREAD), row(one_word(SOLAR), RIVER, BREAD)], [1]),
    ("near_duplicate", [row(SOLAR, RIVER, BREAD), row(SOLAR.upper(), RIVER, BREAD)], [1]),
    ("contradictory", [row("Q", "yes", "no"), row("Q", "no", "yes")], [0, 1]),
    ("contradictory", [row(SOLAR, RIVER, BREAD), row(SOLAR, one_word(BREAD), RIVER)], [0, 1]),
    ("near_identical", [row("Q", SOLAR, SOLAR + " Really.")], [0]),
    ("near_identical", [row("Q", "Yes, sure.", "yes, Sure.")], [0]),
    ("near_identical", [row("問", TOKYO, TOKYO + "!")], [0]),
    ("markers", [row("Q", "a <|im_start|> b", "no")], [0]),
    ("markers", [row("[INST] Q [/INST]", "yes", "no")], [0]),
    ("markers", [row("\n\nHuman: Q\n\nAssistant: A", "yes", "no")], [0]),
    ("markers", [row("Q", "a</s> b", "no")], [0]),
    ("double_eos", [row("Q", "yes</s>", "no")], [0]),
    ("double_eos", [row("Q", "yes", "no<|im_end|>\n")], [0]),
    ("double_bos", [row("<s>Q", "yes", "no")], [0]),
    ("role_trouble", [row(messages("user: Q", "assistant: A"), "yes", "no")], [0]),
    ("role_trouble", [row(messages("user: Q", "user: again"), "yes", "no")], [0]),
    ("role_trouble", [row(messages("user: Q", "system: S", "user: again"), "yes", "no")], [0]),
    ("role_trouble", [row(messages("system: S"), "yes", "no")], [0]),
    ("script_switch", [row(SOLAR, "Солнце это звезда в середине системы", "no")], [0]),
    ("not_json", ["{"], [0]),
    ("empty_chosen", [row("Q", " ", "no")], [0]),
    ("identical_answers", [row("Q", "yes", "yes ")], [0]),
    ("unknown_role", [row(messages("narrator: Q"), "yes", "no")], [0]),
    ("lower_score", [row("Q", "yes", "no", score_chosen=1, score_rejected=2.5)], [0]),
    ("lower_score", [row("Q", "yes", "no", **{"chosen-rating": "1", "rejected-rating": "2"})], [0]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "rows", "expected"), FIRES)
def test_fires(rule: str, rows: list[Any], expected: list[int], write_rows: WriteRows) -> None:
    found = look(write_rows, [*clean_rows(), *rows])
    assert flagged(found) == {rule: [40 + number for number in expected]}


QUIET = [
    [row("Q", "yes", "no"), row("Q", "yes", "maybe")],  # a ranking of three answers
    [row("Q", "yes", "no"), row("R", "no", "yes")],  # another prompt
    [row(SOLAR, RIVER, BREAD), row(rewritten(SOLAR), RIVER, BREAD)],
    [row(SOLAR, RIVER, BREAD), row(SOLAR, RIVER, SOLAR)],  # another rejected answer
    [row(SOLAR, "yes", "no"), row(SOLAR, "sure", "never")],  # a long shared prompt is no repeat
    [row("Q", "x = 1", "x = -1")],  # a sign is a word
    [row("Q", "a < b and c > d [1]", "no | yes")],
    [row("Who? Human: no mark inside a line", "yes", "no")],
    [row(messages("system: S", "user: Q", "assistant: A", "user: R"), "yes", "no")],
    [row(messages("user: Q", "assistant: A", "tool: T", "tool: T", "user: R"), "yes", "no")],
    [row(TOKYO, "東京都日本国首都人口世界最大級都市圏", "no")],
    [row(SOLAR, "Да, конечно", "no")],  # too few letters to tell
    [row("Q", "yes", "no", score_chosen=2, score_rejected=2)],
]  # fmt: skip


@pytest.mark.parametrize("rows", QUIET)
def test_stays_quiet(rows: list[Any], write_rows: WriteRows) -> None:
    assert flagged(look(write_rows, [*clean_rows(), *rows])) == {}


def test_leakage_by_prompt_exact_and_near(write_rows: WriteRows) -> None:
    rows = [row(SOLAR, "yes", "no"), row(BREAD, "yes", "nope"), row(RIVER, "yes", "never")]
    held_out = [
        row(SOLAR + "\n", "other", "no"), row(one_word(BREAD), "x", "y"), row("Else?", "a", "b")
    ]  # fmt: skip
    found = look(write_rows, rows, held_out)
    assert flagged(found) == {"leaked": [0], "leaked_near": [1]}
    exact, near = found.findings
    assert (exact.severity, near.severity) == ("error", "warning")
    assert exact.rows[0].endswith("held_out.jsonl:1, with one of the same answers")
    assert "held_out.jsonl:2" in near.rows[1]


def test_unusable_rows_are_an_error_when_they_are_many(write_rows: WriteRows) -> None:
    few = look(write_rows, [*clean_rows(), row("Q", "", "no")])
    many = look(write_rows, [*clean_rows(8), row("Q", "", "no")])
    assert [f.severity for f in few.findings] == ["warning"]
    assert [f.severity for f in many.findings] == ["error"]


@pytest.mark.parametrize(("longer", "word"), [(90, "longer"), (10, "shorter"), (55, None)])
def test_length_bias_needs_a_sure_majority(
    longer: int, word: str | None, write_rows: WriteRows
) -> None:
    rows = [row(question(n), "a b" if n < longer else "a", "c" if n < longer else "c d")
            for n in range(100)]  # fmt: skip
    found = look(write_rows, rows)
    bias = found.figures["length_bias"]
    assert (bias["chosen_longer"], bias["rejected_longer"], bias["equal"]) == (
        longer, 100 - longer, 0
    )  # fmt: skip
    assert bias["low"] < longer / 100 == bias["accuracy"] < bias["high"]
    assert [f.words.get("longer") for f in found.findings] == [word] * bool(word)


def test_ten_pairs_are_too_few_to_call_a_bias(write_rows: WriteRows) -> None:
    rows = [row(question(n), "a b" if n < 8 else "a", "c" if n < 8 else "c d") for n in range(10)]
    assert flagged(look(write_rows, rows)) == {}


def test_limits_that_cut_and_limits_that_hide_the_difference(
    write_rows: WriteRows, tokenizer: Any
) -> None:
    rows = [*clean_rows(), row("Q", SOLAR + " Yes.", SOLAR + " No, never at all."),
            row("Q", RIVER, BREAD)]  # fmt: skip
    found = look(write_rows, rows, tokenizer=tokenizer, limits=Limits(completion=20))
    fired = flagged(found)
    assert fired.pop("near_identical", [40]) == [40]
    assert fired["lost_difference"] == [40]
    assert fired["over_long"][-2:] == [40, 41]
    roomy = flagged(look(write_rows, rows, tokenizer=tokenizer, limits=Limits(completion=500)))
    assert "lost_difference" not in roomy and "over_long" not in roomy


def test_over_long_is_a_note_until_many_are_cut(write_rows: WriteRows, tokenizer: Any) -> None:
    rows = [*clean_rows(), row("Q", RIVER, BREAD)]
    one = look(write_rows, rows, tokenizer=tokenizer, limits=Limits(completion=60))
    every = look(write_rows, rows, tokenizer=tokenizer, limits=Limits(completion=2))
    severity = {f.rule: (f.severity, f.n) for f in one.findings}
    assert severity == {"over_long": ("note", 1)}
    worst = next(f for f in every.findings if f.rule == "over_long")
    assert worst.severity == "warning" and worst.n > MANY_CUT * worst.of


def test_tokens_show_what_texts_hide(write_rows: WriteRows, tokenizer: Any) -> None:
    """A template that writes BOS before a text that has one; an end token inside an answer."""
    tokenizer = with_bos(tokenizer)
    tokenizer.chat_template = BOS_TEMPLATE.replace("[{{ m['role'] }}] ", "")
    rows = [*clean_rows(), row("<s>Q", "yes", "no"), row("Q", "one<|im_end|> two", "no")]
    fired = flagged(look(write_rows, rows, tokenizer=tokenizer))
    assert fired == {"double_bos": [40], "end_inside": [41], "markers": [41]}


def test_double_bos_by_the_template_itself(write_rows: WriteRows, tokenizer: Any) -> None:
    tokenizer = with_bos(tokenizer)
    tokenizer.chat_template = "{{ bos_token }}" + BOS_TEMPLATE.replace("[{{ m['role'] }}] ", "")
    fired = flagged(look(write_rows, clean_rows(10), tokenizer=tokenizer))
    assert fired == {"double_bos": list(range(10))}


def test_plain_strings_get_one_bos(write_rows: WriteRows, tokenizer: Any) -> None:
    found = look(write_rows, clean_rows(), tokenizer=with_bos(tokenizer), chat_template="none")
    assert flagged(found) == {}


def test_a_template_that_refuses(write_rows: WriteRows, tokenizer: Any) -> None:
    tokenizer.chat_template = FUSSY_TEMPLATE
    rows = [*clean_rows(), row(messages("system: S", "user: Q"), "yes", "no")]
    assert flagged(look(write_rows, rows, tokenizer=tokenizer)) == {"template_refused": [40]}


def test_every_rule_was_made_to_fire_here_or_is_a_reason_of_the_loader() -> None:
    fired = {rule for rule, _, _ in FIRES}
    elsewhere = {"leaked", "leaked_near", "length_bias", "over_long", "lost_difference"}
    elsewhere |= {"beyond_embedding"}  # in test_bounds.py
    from orpo_dist.data.reasons import REASONS

    assert set(RULES) == fired | elsewhere | set(REASONS)
    assert set(REASONS) < set(DROPPED)


def test_what_was_left_out_is_said(write_rows: WriteRows) -> None:
    found = look(write_rows, clean_rows())
    assert found.figures["unit"] == "characters"
    assert [text.partition(":")[0] for text in found.figures["left_out"]] == [
        "no tokenizer", "no evaluation data"
    ]  # fmt: skip
    assert "truncation" not in found.figures


def test_worst_comes_first_and_categories_are_told_apart(write_rows: WriteRows) -> None:
    rows = [{**r, "category": "a"} for r in clean_rows()]
    rows += [row("Q", "yes", "no</s>", category="b"), row("Q", "no", "yes", category="b"),
             row("Q", "yes", "no", category="b"), row("R", "so", "so", category="b")]  # fmt: skip
    found = look(write_rows, rows)
    assert [f.rule for f in found.findings] == [
        "contradictory", "identical_answers", "double_eos"
    ]  # fmt: skip
    parts = found.figures["categories"]
    assert {name: part["pairs"] for name, part in parts.items()} == {"a": 40, "b": 3}
    assert parts["a"]["flagged"] == {}
    assert parts["b"]["flagged"] == {"contradictory": 2, "double_eos": 1}


def test_nothing_readable_is_one_sentence(write_rows: WriteRows) -> None:
    with pytest.raises(UserError, match="no readable pair; 2 × the chosen answer is empty"):
        look(write_rows, [row("Q", "", "no"), row("R", "", "no")])


def test_a_missing_column_is_one_sentence(write_rows: WriteRows) -> None:
    with pytest.raises(UserError, match="has no column 'chosen'"):
        look(write_rows, [{"prompt": "Q", "good": "a", "rejected": "b"}])


def test_a_template_that_refuses_all_is_one_sentence(write_rows: WriteRows, tokenizer: Any) -> None:
    tokenizer.chat_template = FUSSY_TEMPLATE
    rows = [row(messages("system: S", "user: Q"), "yes", "no")]
    with pytest.raises(UserError, match="the template accepts no pair"):
        look(write_rows, rows, tokenizer=tokenizer)
