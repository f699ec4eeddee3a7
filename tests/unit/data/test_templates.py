"""Chat templates: where they come from, what they write, and when they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.data.encode import Encoder
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Example
from orpo_dist.data.template import PLAIN_TEMPLATE
from tests.unit.encoding import (
    END,
    FUSSY_TEMPLATE,
    SHY_TEMPLATE,
    encode_one,
    text_of,
    untemplated,
    with_bos,
)


def test_template_texts(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer)
    turns = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
    turns = [{"role": "system", "content": "S"}, *turns, {"role": "user", "content": "Q2"}]
    found = encode_one(encoder, turns, "yes", "no")
    rendered = "".join(f"<|im_start|>{t['role']}\n{t['content']}{END}\n" for t in turns)
    assert text_of(tokenizer, found.prompt) == rendered + "<|im_start|>assistant\n"
    assert text_of(tokenizer, found.chosen) == f"yes{END}"
    one = encode_one(encoder, "Q1", "yes", "no")
    assert (one.form, found.form) == ("wrapped", "messages")
    assert one == replace(encode_one(encoder, turns[1:2], "yes", "no"), form="wrapped")
    assert text_of(tokenizer, one.prompt).startswith(f"<|im_start|>user\nQ1{END}\n")


def test_templates_from_a_file_a_text_or_nowhere(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(FUSSY_TEMPLATE, encoding="utf-8")
    from_text = encode_one(Encoder(tokenizer, FUSSY_TEMPLATE), " Q ", " yes ", "no")
    assert tokenizer.chat_template == FUSSY_TEMPLATE
    tokenizer.chat_template = None
    assert encode_one(Encoder(tokenizer, str(path)), " Q ", " yes ", "no") == from_text
    assert tokenizer.chat_template == FUSSY_TEMPLATE
    assert text_of(tokenizer, from_text.prompt) == f"Q{END}"
    assert text_of(tokenizer, from_text.chosen) == f"yes{END}"
    plain = encode_one(Encoder(tokenizer, "none"), " Q ", " yes ", "no")
    assert text_of(tokenizer, plain.prompt) == " Q "
    assert text_of(tokenizer, plain.chosen) == f" yes {END}"
    assert tokenizer.chat_template == FUSSY_TEMPLATE


def test_a_thought_that_the_answer_does_not_go_on_with_is_closed(tokenizer: Any) -> None:
    found = encode_one(Encoder(tokenizer, SHY_TEMPLATE), "Q", "yes", "no")
    assert text_of(tokenizer, found.prompt) == f"user: Q{END}assistant: <think>"
    assert text_of(tokenizer, found.chosen) == f"\n</think>\n\nyes{END}"
    assert found.notes == ("thought_closed",)


def test_a_generation_prompt_that_the_answer_does_not_follow(tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}Now answer!{% endif %}"
    found = encode_one(Encoder(tokenizer, template), "Q", "yes", "no")
    assert text_of(tokenizer, found.prompt) == f"user: Q{END}Now answer!"
    assert text_of(tokenizer, found.chosen) == f"yes{END}"


def test_what_follows_an_answer_is_no_part_of_it(tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m['content'] }}\n---\n{% endfor %}"
    found = encode_one(Encoder(tokenizer, template), "Q", "yes", "no")
    assert text_of(tokenizer, found.prompt) == "Q\n---\n"
    assert text_of(tokenizer, found.chosen) == f"yes{END}"


def test_without_a_template_strings_stay_plain_and_messages_get_one(tokenizer: Any) -> None:
    encoder = Encoder(untemplated(tokenizer))
    assert not encoder.wraps_strings
    assert tokenizer.chat_template is None
    assert text_of(tokenizer, encode_one(encoder, "Q", "yes", "no").prompt) == "Q"
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    found = encode_one(encoder, turns, "yes", "no")
    assert text_of(tokenizer, found.prompt) == "S\nUser: Q\nAssistant:"
    assert text_of(tokenizer, found.chosen) == f" yes{END}"
    encoder.keep_template()
    assert tokenizer.chat_template == PLAIN_TEMPLATE


@pytest.mark.parametrize("bos", [False, True])
def test_a_second_encoder_reads_the_prompt_like_the_first(
    bos: bool, tokenizer: Any, tmp_path: Path
) -> None:
    """A run stores the plain template in its tokenizer; strings must stay plain afterwards."""
    from transformers import AutoTokenizer

    if bos:
        with_bos(tokenizer)
    first = Encoder(untemplated(tokenizer))
    first.keep_template()
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "Q"}]
    for again in (Encoder(tokenizer), Encoder(reloaded)):
        assert not again.wraps_strings
        for prompt in ("Why?", turns):
            assert again.prompt_ids(prompt) == first.prompt_ids(prompt)


def test_a_template_that_refuses_one_example(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, FUSSY_TEMPLATE)
    refused = Example([{"role": "system", "content": "S"}], "yes", "no")
    found = encoder.encode([Example("Q1", "yes", "no"), refused, Example("Q2", "yes", "no")])
    assert isinstance(found[1], Unusable) and found[1].reason == "template_refused"
    assert found[::2] == [encode_one(encoder, q, "yes", "no") for q in ("Q1", "Q2")]
    with pytest.raises(Unusable, match="template_refused"):
        encoder.prompt_ids(refused.prompt)
    assert encoder.encode([]) == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("absent.jinja", "chat_template absent.jinja: is neither Jinja text nor a readable file"),
        ("{% for m in messages %}", "the chat template fails on a plain question"),
        ("{{ raise_exception('never') }}", "fails on a plain question: never"),
        ("{{ messages[7].content.x }}", "fails on a plain question"),
    ],
)
def test_bad_templates(template: str, message: str, tokenizer: Any) -> None:
    with pytest.raises(UserError) as caught:
        Encoder(tokenizer, template)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_file_that_is_not_text(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.jinja"
    path.write_bytes(b"{{ '\xff' }}")
    for bad in (path, tmp_path):
        with pytest.raises(UserError, match="neither Jinja text nor a readable file"):
            Encoder(tokenizer, str(bad))


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"end-of-text.*eos_token"):
        Encoder(tokenizer)
