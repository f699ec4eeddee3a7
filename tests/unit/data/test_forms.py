"""Text that was rendered before is not rendered again, whatever of it was rendered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from orpo_dist.data.encode import Encoded, Encoder
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Columns, parse_row
from tests.kinds import KINDS

KindDir = Callable[[str], Path]

Q = [{"role": "user", "content": "Why?"}]
YES, NO = "Because.", "No idea."
TEMPLATED = [kind for kind in KINDS if kind not in ("notemplate", "blocks")]
# Their answers go on where the generation prompt stops; of text that was rendered without it,
# nobody can tell what it would have been.
OPEN_ENDED = {"r1", "qwen35"}


def encoder_of(kind: str, kind_dir: KindDir) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(kind_dir(kind)))


def encoded(encoder: Encoder, row: dict[str, Any]) -> Encoded | Unusable:
    return encoder.encode([parse_row(row, Columns())])[0]


def render(encoder: Encoder, *answer: str, generate: bool = False) -> str:
    talk = [*Q, *({"role": "assistant", "content": text} for text in answer)]
    return str(
        encoder.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=generate)
    )


def rendered_rows(encoder: Encoder) -> dict[str, dict[str, Any]]:
    """The ways in which notebooks render a pair before they pass it on."""
    prompt, question = render(encoder, generate=True), render(encoder)
    whole = {"chosen": render(encoder, YES), "rejected": render(encoder, NO)}
    lead = len(prompt if whole["chosen"].startswith(prompt) else question)
    return {
        "prompt, answers after it": {
            "prompt": prompt,
            **{side: text[lead:] for side, text in whole.items()},
        },
        "prompt without the assistant's mark": {
            "prompt": question,
            **{side: text[len(question) :] for side, text in whole.items()},
        },
        "whole conversations": whole,
        "whole conversations beside the plain question": {"prompt": "Why?", **whole},
        "whole conversations beside their prompt": {"prompt": prompt, **whole},
    }


@pytest.mark.parametrize("way", range(5))
@pytest.mark.parametrize("kind", TEMPLATED)
def test_rendered_text_is_what_messages_become(kind: str, way: int, kind_dir: KindDir) -> None:
    encoder = encoder_of(kind, kind_dir)
    row = [*rendered_rows(encoder).values()][way]
    found = encoded(encoder, row)
    assert isinstance(found, Encoded), found
    assert (found.form, found.notes) == ("rendered", ("rendered",))
    decode = encoder.tokenizer.decode
    text, end = decode(found.prompt) + decode(found.chosen), decode([encoder.end_id])
    whole = render(encoder, YES)
    assert text.count("Why?") == 1
    if kind not in OPEN_ENDED or way > 0:
        assert text == whole[: whole.rindex(end) + len(end)]
    if kind not in OPEN_ENDED:
        messages = encoded(encoder, {"prompt": Q, "chosen": YES, "rejected": NO})
        assert isinstance(messages, Encoded)
        assert (found.prompt, found.chosen) == (messages.prompt, messages.chosen)


@pytest.mark.parametrize("kind", TEMPLATED)
def test_rendered_answers_after_messages(kind: str, kind_dir: KindDir) -> None:
    encoder = encoder_of(kind, kind_dir)
    plain = encoded(encoder, {"prompt": Q, "chosen": YES, "rejected": NO})
    after = len(render(encoder))
    row = {"prompt": Q, "chosen": render(encoder, YES)[after:], "rejected": NO}
    assert encoded(encoder, row) == plain


@pytest.mark.parametrize("kind", TEMPLATED)
def test_rendered_text_of_another_question(kind: str, kind_dir: KindDir) -> None:
    encoder = encoder_of(kind, kind_dir)
    row = {"prompt": "How?", "chosen": render(encoder, YES), "rejected": render(encoder, NO)}
    found = encoded(encoder, row)
    assert isinstance(found, Unusable) and found.reason == "mismatched_prompts"


def test_rendered_text_may_begin_with_the_words_of_a_system_message(kind_dir: KindDir) -> None:
    """R1's template writes them without a mark."""
    encoder = encoder_of("r1", kind_dir)
    talk = [{"role": "system", "content": "Be kind."}, *Q]
    whole = encoded(encoder, {"prompt": talk, "chosen": YES, "rejected": NO})
    prompt = encoder.tokenizer.apply_chat_template(
        talk, tokenize=False, add_generation_prompt=True
    ).removeprefix("<|bos|>")
    found = encoded(encoder, {"prompt": prompt, "chosen": YES, "rejected": NO})
    assert isinstance(found, Encoded) and isinstance(whole, Encoded)
    assert found.form == "rendered" and found.prompt == whole.prompt


@pytest.mark.parametrize(
    ("prompt", "reason", "detail"),
    [
        (
            "<|start_header_id|>user<|end_header_id|>\n\nWhy?",
            "foreign_marks",
            "<|start_header_id|>",
        ),
        ("<s>[INST] Why? [/INST]", "foreign_marks", "[INST]"),
        ("<start_of_turn>user\nWhy?<end_of_turn>\n", "foreign_marks", "<start_of_turn>"),
        ("What does <|im_end|> mean?", "special_inside", "<|im_end|>"),
    ],
)
def test_marks_that_cannot_be_meant(
    prompt: str, reason: str, detail: str, kind_dir: KindDir
) -> None:
    encoder = encoder_of("qwen-base", kind_dir)
    row = {"prompt": prompt, "chosen": YES, "rejected": NO}
    found = encoded(encoder, row)
    assert isinstance(found, Unusable) and (found.reason, found.detail) == (reason, detail)
    assert "chat_template none" in found.sentence
    plain = Encoder(AutoTokenizer.from_pretrained(kind_dir("qwen-base")), "none")
    taken = encoded(plain, row)
    assert isinstance(taken, Encoded) and plain.tokenizer.decode(taken.prompt) == prompt


@pytest.mark.parametrize("prompt", ["Is 5 > 3 or <5?", "Use [INST] or </s> in Markdown", "a <| b"])
def test_what_only_looks_like_a_mark_is_a_question(prompt: str, kind_dir: KindDir) -> None:
    found = encoded(
        encoder_of("qwen-base", kind_dir), {"prompt": prompt, "chosen": YES, "rejected": NO}
    )
    assert isinstance(found, Encoded) and found.form == "wrapped"


def test_the_instruction_form_stays_as_it_is(kind_dir: KindDir) -> None:
    prompt = "Below is an instruction.\n\n### Instruction:\nWhy?\n\n### Response:\n"
    encoder = encoder_of("mistral", kind_dir)
    found = encoded(encoder, {"prompt": prompt, "chosen": YES, "rejected": NO})
    assert isinstance(found, Encoded)
    assert (found.form, found.notes) == ("plain", ("instruction",))
    assert encoder.tokenizer.decode(found.prompt) == "<s>" + prompt
    about = "What does '### Instruction:' mean?"
    assert encoded(encoder, {"prompt": about, "chosen": YES, "rejected": NO}).form == "wrapped"  # type: ignore[union-attr]


HUMAN, WHOLE = (
    "\n\nHuman: Why?",
    {
        "chosen": f"\n\nHuman: Why?\n\nAssistant: {YES}",
        "rejected": f"\n\nHuman: Why?\n\nAssistant: {NO}",
    },
)


@pytest.mark.parametrize(
    "row",
    [
        WHOLE,
        {"prompt": "Why?", **WHOLE},
        {"prompt": f"{HUMAN}\n\nAssistant:", **WHOLE},
        {"prompt": f"{HUMAN}\n\nAssistant:", "chosen": f" {YES}", "rejected": f" {NO}"},
        {
            "prompt": f"{HUMAN}\n\n",
            "chosen": f"\n\nAssistant: {YES}",
            "rejected": f"\n\nAssistant: {NO}",
        },
        {"prompt": "### Human: Why? ### Assistant:", "chosen": YES, "rejected": NO},
    ],
)
def test_transcripts_become_messages_whatever_column_they_stand_in(
    row: dict[str, str], kind_dir: KindDir
) -> None:
    encoder = encoder_of("qwen-base", kind_dir)
    assert encoded(encoder, row) == encoded(encoder, {"prompt": Q, "chosen": YES, "rejected": NO})
