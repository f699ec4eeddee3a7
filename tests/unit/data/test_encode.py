"""Token ids of pairs: end and beginning tokens, truncation, templates, and shared prompts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orpo_dist.data.encode import Encoder, Limits
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Example
from tests.unit.encoding import (
    BOS_TEMPLATE,
    END,
    FUSSY_TEMPLATE,
    SHY_TEMPLATE,
    encode_one,
    ids_of,
    reason,
    text_of,
    untemplated,
    with_bos,
)

LONG = "The quick brown fox jumps over the lazy dog, and then it does so once again."
STYLES = {"template": None, "plain": "none"}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("ending", ["", END, END * 2, f"{END}\n", f" {END} {END} \n"])
def test_answers_end_exactly_once(
    style: str, limit: int | None, ending: str, tokenizer: Any
) -> None:
    encoder = Encoder(tokenizer, STYLES[style], Limits(completion=limit))
    found = encode_one(encoder, "Say it", LONG + ending, "No" + ending)
    bare = ids_of(tokenizer, LONG)
    assert encoder.end_id == tokenizer.eos_token_id
    assert found.chosen == [*bare[: limit - 1 if limit else None], encoder.end_id]
    assert found.rejected == [*ids_of(tokenizer, "No"), encoder.end_id]
    assert found.full_lengths == (len(found.prompt), len(bare) + 1, len(found.rejected))


def test_the_end_of_the_template_wins_over_the_end_of_text(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    encoder = Encoder(tokenizer)
    turn_end = tokenizer.convert_tokens_to_ids(END)
    assert encoder.end_id == turn_end != tokenizer.eos_token_id
    found = encode_one(encoder, "Q", f"yes{END}<|end|>", f"no<|end|>{END}")
    assert found.chosen == [*ids_of(tokenizer, "yes"), turn_end]
    assert found.rejected == [*ids_of(tokenizer, "no"), turn_end]
    silent = Encoder(tokenizer, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert silent.end_id == tokenizer.eos_token_id


def test_answers_of_end_tokens_only_are_empty(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer)
    assert reason(encoder, "Q", END * 2, "no") == "empty_chosen"
    assert reason(encoder, "Q", "yes", f"{END}\n") == "empty_rejected"
    assert reason(encoder, "Q", f"yes{END}", "yes") == "identical_answers"


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("none", "What is it?"),
        (BOS_TEMPLATE, "What is it?"),
        (BOS_TEMPLATE, [{"role": "user", "content": "What is it?"}]),
        (None, "What is it?"),
        (None, [{"role": "user", "content": "What is it?"}]),
    ],
)
def test_prompts_begin_exactly_once(template: str | None, prompt: Any, tokenizer: Any) -> None:
    encoder = Encoder(untemplated(with_bos(tokenizer)), template)
    found = encode_one(encoder, prompt, "yes", "no")
    bos = tokenizer.bos_token_id
    assert found.prompt[0] == bos
    assert [*found.prompt, *found.chosen, *found.rejected].count(bos) == 1
    assert encoder.prompt_ids(prompt) == found.prompt
    cut = encode_one(Encoder(tokenizer, template, Limits(prompt=4)), prompt, "yes", "no")
    assert cut.prompt == [bos, *found.prompt[-3:]]
    least = encode_one(Encoder(tokenizer, template, Limits(prompt=1)), prompt, "yes", "no")
    assert least.prompt == [bos]


def test_no_beginning_is_invented(tokenizer: Any) -> None:
    plain = Encoder(tokenizer, "none")
    assert encode_one(plain, "What is it?", "yes", "no").prompt == ids_of(tokenizer, "What is it?")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    plain = Encoder(tokenizer, "none")
    assert tokenizer.bos_token_id not in encode_one(plain, "What is it?", "yes", "no").prompt


@pytest.mark.parametrize("style", STYLES)
def test_prompts_are_cut_on_the_left(style: str, tokenizer: Any) -> None:
    whole = encode_one(Encoder(tokenizer, STYLES[style]), LONG, "yes", "no")
    cut = encode_one(Encoder(tokenizer, STYLES[style], Limits(prompt=6)), LONG, "yes", "no")
    assert cut.prompt == whole.prompt[-6:]
    assert (
        cut.full_lengths
        == whole.full_lengths
        == tuple(map(len, (whole.prompt, whole.chosen, whole.rejected)))
    )
    assert (cut.chosen, cut.rejected) == (whole.chosen, whole.rejected)


def test_a_turn_marker_named_bos_is_no_beginning(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    whole = encode_one(Encoder(tokenizer), "Q", "yes", "no")
    cut = encode_one(Encoder(tokenizer, None, Limits(prompt=7)), "Q", "yes", "no")
    assert cut.prompt == whole.prompt[-7:] != [tokenizer.bos_token_id, *whole.prompt[-6:]]


def test_each_answer_has_its_own_budget(tokenizer: Any) -> None:
    whole = encode_one(Encoder(tokenizer, "none"), "What is it?", LONG, "It is no fox")
    prompt, short = len(whole.prompt), len(whole.rejected)
    sequence = prompt + short
    assert len(whole.chosen) > short > 2
    limits = Limits(prompt=sequence - 2, sequence=sequence)
    cut = encode_one(Encoder(tokenizer, "none", limits), "What is it?", LONG, "It is no fox")
    assert (cut.prompt, cut.rejected) == (whole.prompt, whole.rejected)
    assert cut.chosen == [*whole.chosen[: short - 1], tokenizer.eos_token_id]
    assert cut.full_lengths == whole.full_lengths
    tight = Limits(prompt=3, completion=4, sequence=100)
    cut = encode_one(Encoder(tokenizer, "none", tight), "What is it?", LONG, "It is no fox")
    assert [len(part) for part in (cut.prompt, cut.chosen, cut.rejected)] == [3, 4, 4]


def test_overlong_pairs_can_be_skipped(tokenizer: Any) -> None:
    fits = encode_one(Encoder(tokenizer, "none"), "What is it?", LONG, "no")
    limits = Limits(len(fits.prompt), len(fits.chosen), len(fits.prompt) + len(fits.chosen), True)
    encoder = Encoder(tokenizer, "none", limits)
    assert encode_one(encoder, "What is it?", LONG, "no") == fits
    for parts in (
        ("What is it? ?", LONG, "no"),
        ("What is it?", LONG + "!!", "no"),
        ("What is it?", "no", LONG + "!!"),
    ):
        assert reason(encoder, *parts) == "over_length"


def test_answers_that_differ_only_behind_the_cut(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, "none", Limits(completion=4))
    assert reason(encoder, "Q", LONG + " Yes", LONG + " No") == "over_length"


WORDS = st.text(st.sampled_from("the fox é\n.,"), min_size=1, max_size=40).filter(str.strip)
OPTIONAL = st.none() | st.integers(1, 30)
NO_RESET = [HealthCheck.function_scoped_fixture]


LIMITS = st.builds(
    Limits, OPTIONAL, OPTIONAL.filter(lambda length: length != 1), st.none() | st.integers(4, 40)
)


@given(WORDS, WORDS, WORDS, LIMITS)
@settings(max_examples=150, deadline=None, suppress_health_check=NO_RESET)
def test_limits_hold_for_any_pair(
    tokenizer: Any, prompt: str, chosen: str, rejected: str, limits: Limits
) -> None:
    found = Encoder(tokenizer, None, limits).encode([Example(prompt, chosen, rejected)])[0]
    if isinstance(found, Unusable):
        assert found.reason in ("over_length", "identical_answers")
        return
    longest = max(len(found.chosen), len(found.rejected))
    assert len(found.prompt) <= (limits.prompt or len(found.prompt))
    assert longest <= (limits.completion or longest)
    assert len(found.prompt) + longest <= (limits.sequence or len(found.prompt) + longest)
    assert min(map(len, (found.prompt, found.chosen, found.rejected))) >= 1
    for answer in (found.chosen, found.rejected):
        assert answer.count(tokenizer.eos_token_id) == 1 and answer[-1] == tokenizer.eos_token_id


def test_a_merge_across_the_boundary_leaves_the_prompt_alone(tokenizer: Any) -> None:
    joint, apart = ids_of(tokenizer, "the"), ids_of(tokenizer, "th")
    assert joint[: len(apart)] != apart
    found = encode_one(Encoder(tokenizer, "none"), "th", "e", "is")
    assert found.prompt == apart
    assert found.chosen == [*ids_of(tokenizer, "e"), tokenizer.eos_token_id]


@given(prompt=WORDS | st.text(min_size=1), chosen=WORDS | st.text(), rejected=WORDS)
@settings(max_examples=150, deadline=None, suppress_health_check=NO_RESET)
def test_prompt_ids_never_depend_on_the_answers(
    tokenizer: Any, prompt: str, chosen: str, rejected: str
) -> None:
    encoder = Encoder(tokenizer, "none")
    found = encoder.encode([Example(prompt, chosen, rejected)])[0]
    if isinstance(found, Unusable):
        assert not chosen.strip() or chosen == rejected
        return
    assert found.prompt == ids_of(tokenizer, prompt) == encoder.prompt_ids(prompt)
    assert text_of(tokenizer, found.chosen) == chosen + END
    assert text_of(tokenizer, found.rejected) == rejected + END
    assert encoder.encode_answer(prompt, chosen) == (found.prompt, found.chosen)


@pytest.mark.parametrize("template", [None, "none", BOS_TEMPLATE, FUSSY_TEMPLATE, SHY_TEMPLATE])
@pytest.mark.parametrize("prompt", ["Why?", [{"role": "user", "content": "Why?"}]])
def test_scoring_sees_what_training_sees(template: str | None, prompt: Any, tokenizer: Any) -> None:
    encoder = Encoder(with_bos(tokenizer), template)
    found = encode_one(encoder, prompt, " because\n", f"no{END}")
    assert encoder.encode_answer(prompt, " because\n") == (found.prompt, found.chosen)
    assert encoder.encode_answer(prompt, f"no{END}") == (found.prompt, found.rejected)
    assert encoder.prompt_ids(prompt) == found.prompt
