"""Tokenizers, templates and shortcuts that the tests of the encoder share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orpo_dist.data.encode import Encoded, Encoder
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Example

END = "<|im_end|>"
BOS_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
FUSSY_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
)
SHY_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>{% endif %}"
)


def with_bos(tokenizer: Any) -> Any:
    """The tokenizer as Llama's are: BOS before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A",
        pair="<s> $A <s> $B",
        special_tokens=[("<s>", tokenizer.bos_token_id)],
    )
    return tokenizer


def untemplated(tokenizer: Any) -> Any:
    tokenizer.chat_template = None
    return tokenizer


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def encode_one(encoder: Encoder, *parts: Any) -> Encoded:
    found = encoder.encode([Example(*parts)])[0]
    assert isinstance(found, Encoded), found
    return found


def reason(encoder: Encoder, *parts: Any) -> str:
    found = encoder.encode([Example(*parts)])[0]
    assert isinstance(found, Unusable), found
    return found.reason
