"""Thirteen kinds of tokenizers and templates: what is trained is what the template renders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from orpo_dist.data.encode import Encoded, Encoder
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Columns, parse_row
from orpo_dist.data.template import PLAIN_TEMPLATE
from tests.kinds import KINDS

KindDir = Callable[[str], Path]

TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"at": "Rome"}'}}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


Q = said("user", "What is 2+2?")
MULTI = [Q, said("assistant", "It is 4."), said("user", "And 3+3?")]
# name -> (the row, its messages and its chosen answer as any template takes them)
FORMS: dict[str, tuple[dict[str, Any], list[Any], dict[str, Any]]] = {
    "plain": (
        {"prompt": "What is 2+2?", "chosen": "It is 4.", "rejected": "It is 5."},
        [Q],
        said("assistant", "It is 4."),
    ),
    "chat": (
        {
            "chosen": [Q, said("assistant", "It is 4.\n")],
            "rejected": [Q, said("assistant", "It is 5.")],
        },
        [Q],
        said("assistant", "It is 4.\n"),
    ),
    "multi-turn": (
        {"prompt": MULTI, "chosen": "It is 6.", "rejected": "It is 7."},
        MULTI,
        said("assistant", "It is 6."),
    ),
    "system": (
        {
            "prompt": [said("system", "Be brief."), Q],
            "chosen": [said("assistant", "4")],
            "rejected": [said("assistant", "It may well be 5.")],
        },
        [said("system", "Be brief."), Q],
        said("assistant", "4"),
    ),
    "tools": (
        {
            "tools": TOOLS,
            "prompt": [Q, said("assistant", None, tool_calls=[CALL]), said("tool", "12:00")],
            "chosen": [said("assistant", "It is noon.")],
            "rejected": [said("assistant", "It is midnight.")],
        },
        [Q, said("assistant", "", tool_calls=[CALL]), said("tool", "12:00")],
        said("assistant", "It is noon."),
    ),
    "calls": (
        {
            "tools": TOOLS,
            "prompt": [Q],
            "chosen": [said("assistant", "One moment.", tool_calls=[CALL])],
            "rejected": [said("assistant", "No idea.")],
        },
        [Q],
        said("assistant", "One moment.", tool_calls=[CALL]),
    ),
    "reasoning": (
        {
            "prompt": [Q],
            "chosen": [said("assistant", "It is 4.", reasoning_content="Two and two.")],
            "rejected": [said("assistant", "It is 5.", reasoning_content="A guess.")],
        },
        [Q],
        said("assistant", "It is 4.", reasoning_content="Two and two."),
    ),
    "parts": (
        {
            "prompt": [said("user", [{"type": "text", "text": "What is 2+2?"}])],
            "chosen": [said("assistant", [{"type": "text", "text": "It is 4."}])],
            "rejected": [said("assistant", ["It is 5."])],
        },
        [Q],
        said("assistant", "It is 4."),
    ),
}
# These templates say no to a role; the run says so with their words.
REFUSED = {
    ("gemma", "system"): "System role not supported",
    ("mistral", "system"): "Conversation roles must alternate",
    ("gemma", "tools"): None,  # a tool's turn is no user's; what it says depends on the place
    ("mistral", "tools"): "Conversation roles must alternate",
}
LEFT_OUT = {
    "tools": {"tools_left_out", "calls_left_out", "message_left_out"},
    "calls": {"tools_left_out", "calls_left_out"},
    "reasoning": {"reasoning_left_out"},
}
KNOWS_TOOLS = {"qwen3", "qwen35", "dict-template"}
# dict-template has a template of its own for rows with tools only
THINKS = {"qwen3", "qwen35", "r1"}


def encoder_of(kind: str, kind_dir: KindDir) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(kind_dir(kind)))


def encoded(encoder: Encoder, row: dict[str, Any]) -> Encoded | Unusable:
    return encoder.encode([parse_row(row, Columns())])[0]


def rendered(kind: str, encoder: Encoder, form: str, generate: bool = False) -> str:
    """What the template makes of the form, asked directly."""
    row, messages, answer = FORMS[form]
    talk = messages if generate else [*messages, answer]
    if kind == "blocks":
        talk = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in talk]
    return str(
        encoder.tokenizer.apply_chat_template(
            talk,
            tools=row.get("tools"),
            chat_template=PLAIN_TEMPLATE if kind == "notemplate" else None,
            tokenize=False,
            add_generation_prompt=generate,
        )
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_answer_are_what_the_template_renders(
    kind: str, form: str, kind_dir: KindDir
) -> None:
    encoder = encoder_of(kind, kind_dir)
    found = encoded(encoder, FORMS[form][0])
    if (kind, form) in REFUSED:
        assert isinstance(found, Unusable) and found.reason == "template_refused"
        assert (REFUSED[kind, form] or "roles") in found.detail
        return
    assert isinstance(found, Encoded)
    decode = encoder.tokenizer.decode
    end = decode([encoder.end_id])
    prompt, answer = decode(found.prompt), decode(found.chosen)
    assert (found.prompt + found.chosen).count(encoder.end_id) == (
        encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"].count(encoder.end_id) + 1
    )
    if kind == "notemplate" and form == "plain":  # without a template, texts stay as they are
        assert prompt + answer == "What is 2+2?It is 4." + end
        return
    assert prompt == rendered(kind, encoder, form, generate=True)
    if kind == "r1":  # drops thoughts, but begins every answer with one
        thought = "Two and two." if form == "reasoning" else ""
        bare = rendered(kind, encoder, form).rpartition("<|Assistant|>")[2]
        assert answer == f"{thought}\n</think>\n\n{bare}"
    else:
        whole = rendered(kind, encoder, form)
        assert prompt + answer == whole[: whole.rindex(end) + len(end)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_template_leaves_out_is_said(kind: str, form: str, kind_dir: KindDir) -> None:
    if (kind, form) in REFUSED:
        return
    found = encoded(encoder_of(kind, kind_dir), FORMS[form][0])
    assert isinstance(found, Encoded)
    expected = set(LEFT_OUT.get(form, ()))
    if kind in (THINKS if form == "reasoning" else KNOWS_TOOLS):
        expected = set()
    if form == "tools" and kind not in ("r1", "zephyr"):  # they have no turn for a result
        expected -= {"message_left_out"}
    if kind == "r1" and form != "reasoning":
        expected |= {"thought_closed"}
    assert set(found.notes) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_calls_alone_are_an_answer_where_the_template_writes_them(
    kind: str, kind_dir: KindDir
) -> None:
    other = {**CALL, "function": {"name": "clock", "arguments": '{"at": "Oslo"}'}}
    row = {
        "tools": TOOLS,
        "prompt": [Q],
        "chosen": [said("assistant", None, tool_calls=[CALL])],
        "rejected": [said("assistant", "", tool_calls=[other])],
    }
    encoder = encoder_of(kind, kind_dir)
    found = encoded(encoder, row)
    if kind not in KNOWS_TOOLS:
        assert isinstance(found, Unusable) and found.reason == "same_when_rendered"
        return
    assert isinstance(found, Encoded)
    texts = [encoder.tokenizer.decode(ids) for ids in (found.chosen, found.rejected)]
    assert '"arguments": {"at": "Rome"}' in texts[0] and '{"at": "Oslo"}' in texts[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_ends_with_the_assistant_is_gone_on_with(
    kind: str, kind_dir: KindDir
) -> None:
    encoder = encoder_of(kind, kind_dir)
    begun = [Q, said("assistant", "It is ")]
    found = encoded(encoder, {"prompt": begun, "chosen": "4.", "rejected": "5."})
    assert isinstance(found, Encoded)
    prompt = encoder.tokenizer.decode(found.prompt)
    assert prompt.endswith("It is")
    if kind == "blocks":
        whole = [said("assistant", [{"type": "text", "text": "It is 4."}])]
        turns = [said("user", [{"type": "text", "text": "What is 2+2?"}]), *whole]
    else:
        turns = [Q, said("assistant", "It is 4.")]
    text = encoder.tokenizer.apply_chat_template(
        turns, chat_template=PLAIN_TEMPLATE if kind == "notemplate" else None, tokenize=False
    )
    end = encoder.tokenizer.decode([encoder.end_id])
    assert prompt + encoder.tokenizer.decode(found.chosen) == text[: text.rindex(end) + len(end)]


THOUGHTS = {  # how a row may write the same thought
    "block": "<think>\nTwo and two.\n</think>\n\nIt is 4.",
    "as generated": "Two and two.\n</think>\n\nIt is 4.",
}


@pytest.mark.parametrize("written", THOUGHTS)
@pytest.mark.parametrize("kind", ["qwen3", "qwen35", "r1"])
def test_a_thought_goes_on_where_the_prompt_stops(
    kind: str, written: str, kind_dir: KindDir
) -> None:
    encoder = encoder_of(kind, kind_dir)
    row = {"prompt": "What is 2+2?", "chosen": THOUGHTS[written], "rejected": "It is 5."}
    found = encoded(encoder, row)
    assert isinstance(found, Encoded)
    decode, end = encoder.tokenizer.decode, encoder.tokenizer.decode([encoder.end_id])
    prompt = decode(found.prompt)
    opened = "" if kind == "qwen3" else "<think>\n"
    assert prompt.endswith(opened) and prompt.count("<think>") == bool(opened)
    rest = "" if opened else "<think>\n"
    assert decode(found.chosen) == f"{rest}Two and two.\n</think>\n\nIt is 4.{end}"
    assert decode(found.rejected) == f"{rest}\n</think>\n\nIt is 5.{end}"
    assert found.notes == (("thought_closed",) if kind == "r1" else ())


@pytest.mark.parametrize("kind", ["qwen3", "r1"])  # r1's template drops it, whatever its name
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_goes_by_several_names(kind: str, key: str, kind_dir: KindDir) -> None:
    encoder = encoder_of(kind, kind_dir)
    sides = {
        side: [said("assistant", "It is 4.", **{key: thought})]
        for side, thought in (("chosen", "Two and two."), ("rejected", "A guess."))
    }
    found = encoded(encoder, {"prompt": [Q], **sides})
    assert isinstance(found, Encoded) and not found.notes
    assert "Two and two." in encoder.tokenizer.decode(found.chosen)


def test_thinking_can_be_switched_off(kind_dir: KindDir) -> None:
    tokenizer = AutoTokenizer.from_pretrained(kind_dir("qwen3"))
    encoder = Encoder(tokenizer, options={"enable_thinking": False})
    found = encoded(encoder, FORMS["plain"][0])
    assert isinstance(found, Encoded)
    assert tokenizer.decode(found.prompt).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.decode(found.chosen) == "It is 4.<|im_end|>"


def test_without_thinking_a_thought_is_left_out_and_said(kind_dir: KindDir) -> None:
    tokenizer = AutoTokenizer.from_pretrained(kind_dir("qwen3"))
    encoder = Encoder(tokenizer, options={"enable_thinking": False})
    for row in (
        {"prompt": "2+2?", "chosen": THOUGHTS["block"], "rejected": "It is 5."},
        FORMS["reasoning"][0],
    ):
        found = encoded(encoder, row)
        assert isinstance(found, Encoded)
        assert tokenizer.decode(found.chosen) == "It is 4.<|im_end|>"
        assert found.notes == ("reasoning_left_out",)


def test_a_template_that_closes_the_opened_thought_itself(kind_dir: KindDir) -> None:
    """As Nemotron 3's: the prompt ends in an open tag, and answers begin with an empty thought."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    encoder = Encoder(AutoTokenizer.from_pretrained(kind_dir("qwen3")), template)
    found = encoded(encoder, FORMS["plain"][0])
    assert isinstance(found, Encoded)
    assert encoder.tokenizer.decode(found.prompt).endswith("assistant\n<think>\n")
    assert encoder.tokenizer.decode(found.chosen) == "</think>It is 4.<|im_end|>"


def test_a_template_that_fails_on_text_reads_parts(kind_dir: KindDir) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ (m.content | list)[0].text.strip() }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder = Encoder(AutoTokenizer.from_pretrained(kind_dir("qwen-base")), template)
    found = encoded(encoder, FORMS["parts"][0])
    assert isinstance(found, Encoded)
    text = encoder.tokenizer.decode(found.prompt + found.chosen)
    assert text == "user: What is 2+2?<|endoftext|>assistant: It is 4.<|endoftext|>"


def test_arguments_are_objects_where_a_template_would_quote_them_twice(kind_dir: KindDir) -> None:
    """Llama 3.1's template writes ``arguments | tojson``; vLLM hands it objects."""
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    encoder = Encoder(AutoTokenizer.from_pretrained(kind_dir("qwen-base")), template)
    found = encoded(encoder, FORMS["calls"][0])
    assert isinstance(found, Encoded)
    text = encoder.tokenizer.decode(found.chosen)
    assert text == 'One moment.clock{"at": "Rome"}<|endoftext|>'


def test_an_empty_system_message_gives_way_to_a_template_that_has_none(kind_dir: KindDir) -> None:
    row = {"prompt": [said("system", " "), Q], "chosen": "4", "rejected": "5"}
    for kind, opening in (("gemma", "<bos><start_of_turn>user"), ("qwen-base", "<|im_start|>sys")):
        encoder = encoder_of(kind, kind_dir)
        found = encoded(encoder, row)
        assert isinstance(found, Encoded)
        assert encoder.tokenizer.decode(found.prompt).startswith(opening)
