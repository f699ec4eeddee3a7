"""Tokenizers that put a blank before every text, as Llama 2's: prompt and answer stay one text."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_dist.data.encode import Encoded, Encoder
from tests.kinds import DEMO
from tests.unit.encoding import encode_one

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
ENDS_IN_A_BLANK = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
PAIRS = [
    ("Why is the sky blue?", "Because light scatters.", "No idea."),
    ("Tell me", " with a blank", "\n\nafter lines"),
    ("Write code", "def f():\n    return 1", "(nothing)"),
    ("The answer is ", "yes", " no"),
    ("Once upon a ti", "me there was", "ger came"),
    ("Schöne Grüße", "日本語", "é"),
]


@pytest.fixture(scope="module")
def blank_tokenizer() -> Any:
    """A BPE with Metaspace and byte fallback: a blank before each text, words begin with ▁."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    words.decoder = decoders.Sequence([
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(content=" ", left=1),
    ])  # fmt: skip
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *letters], show_progress=False
    )
    words.train_from_iterator(DEMO.read_text(encoding="utf-8").splitlines(), trainer)
    ends = [AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")]
    words.add_special_tokens(ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    assert tokenizer.decode(tokenizer("a")["input_ids"] + tokenizer("b")["input_ids"]) == "a b"
    return tokenizer


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
@pytest.mark.parametrize("template", [LLAMA2, ENDS_IN_A_BLANK, None, "none"])
def test_prompt_and_answer_decode_to_their_text(
    template: str | None, pair: tuple[str, str, str], blank_tokenizer: Any
) -> None:
    blank_tokenizer.chat_template = None
    encoder = Encoder(blank_tokenizer, template)
    prompt: Any = pair[0] if template else [{"role": "user", "content": pair[0]}]
    found = encode_one(encoder, prompt, *pair[1:])
    texts = encoder.texts(prompt, pair[1:])
    for ids, answer in zip((found.chosen, found.rejected), texts.answers, strict=True):
        whole = texts.prompt + answer
        joint = blank_tokenizer(whole, add_special_tokens=False)["input_ids"]
        text = blank_tokenizer.decode(found.prompt + ids[:-1])
        assert text == blank_tokenizer.decode(joint)
        assert answer.split()[0] in text and answer.count(" ") <= text.count(" ")


@pytest.mark.parametrize("template", [LLAMA2, None])
def test_ids_are_those_of_the_text_as_a_whole_where_the_boundary_allows(
    template: str | None, blank_tokenizer: Any
) -> None:
    """The built-in template and Llama 2's end before the blank that begins the answer."""
    blank_tokenizer.chat_template = None
    encoder = Encoder(blank_tokenizer, template)
    for question, *answers in PAIRS:
        prompt = [{"role": "user", "content": question}]
        found = encoder.encode_answer(prompt, answers[0])
        texts = encoder.texts(prompt, answers[:1])
        joint = blank_tokenizer(texts.prompt + texts.answers[0], add_special_tokens=False)
        assert found[0] + found[1] == [*joint["input_ids"], encoder.end_id]


def test_llama2_keeps_the_blank_before_its_end(blank_tokenizer: Any) -> None:
    encoder = Encoder(blank_tokenizer, LLAMA2)
    found = encode_one(encoder, "Why?", "Because.", "No idea.")
    assert isinstance(found, Encoded)
    text = blank_tokenizer.decode(found.prompt + found.chosen)
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    whole = blank_tokenizer.apply_chat_template(talk, tokenize=False)
    assert text.replace("<s> ", "<s>") == whole


def test_where_a_prompt_ends_in_a_blank_the_answer_brings_none(blank_tokenizer: Any) -> None:
    """The boundary does not allow the ids of the whole text: there, ▁ and the word are one."""
    encoder = Encoder(blank_tokenizer, ENDS_IN_A_BLANK)
    found = encode_one(encoder, "Why?", "yes", "no")
    assert blank_tokenizer.decode(found.prompt).endswith("ASSISTANT: ")
    first = blank_tokenizer.convert_ids_to_tokens(found.chosen[0])
    assert not first.startswith("▁")
