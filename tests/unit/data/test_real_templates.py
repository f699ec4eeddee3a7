"""Chat templates of real models, from the files that TRL ships: every form goes through each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from orpo_dist.data.encode import Encoded, Encoder
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Columns, parse_row
from tests.unit.data.test_kinds import FORMS

trl = pytest.importorskip("trl", reason="TRL is a development dependency")
FILES = {
    file.stem: file
    for file in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    if not file.stem.endswith("training")  # with marks for TRL's own loss masks
}
MARK = re.compile(
    r"<[|｜][^|｜<>{}'\" ]+[|｜]>|<(?:start|end)_of_turn>|<\|turn>|<turn\|>|\[/?INST\]"
)
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|return|>", "<｜end▁of▁sentence｜>", "<end_of_turn>", "<turn|>",
    "<|END_OF_TURN_TOKEN|>",
)  # fmt: skip
# What they refuse of these rows, in words of their own.
PICKY = {"tools", "calls", "system"}
# After a call Gemma 4 leaves the turn open for the result; here every answer has an end.
OPEN_CALLS = ("gemma4", "diffusion_gemma")


def encoder_of(name: str, folder: Path) -> Encoder:
    """A small tokenizer that has the marks of the template among its special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = FILES[name].read_text(encoding="utf-8")
    marks = sorted(set(MARK.findall(source)))
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.eos_token = next((end for end in ENDS if end in marks), "<|endoftext|>")
    if "bos_token" in source:
        tokenizer.add_special_tokens({"bos_token": "<bos>"})
    return Encoder(tokenizer, source)


def test_there_are_templates() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FILES)
def test_prompt_and_answer_are_what_the_template_renders(
    name: str, form: str, kind_dir: Callable[[str], Path]
) -> None:
    encoder = encoder_of(name, kind_dir("qwen-base"))
    row, messages, answer = FORMS[form]
    found = encoder.encode([parse_row(row, Columns())])[0]
    if isinstance(found, Unusable):
        assert found.reason == "template_refused" and found.detail and form in PICKY
        return
    assert isinstance(found, Encoded)

    def render(talk: list[Any], generate: bool = False) -> str:
        talk = [encoder.template._fitted(one) for one in talk]
        return str(
            encoder.tokenizer.apply_chat_template(
                talk, tools=row.get("tools"), tokenize=False, add_generation_prompt=generate
            )
        )

    prompt, text = (encoder.tokenizer.decode(ids) for ids in (found.prompt, found.chosen[:-1]))
    assert prompt == render(messages, generate=True)
    whole = render([*messages, answer])
    if whole.startswith(prompt):
        assert whole.startswith(prompt + text)
        if not (form == "calls" and name.startswith(OPEN_CALLS)):
            assert whole[len(prompt + text) :].strip() == encoder.template.tail.strip()
    assert (prompt + text).count("<think>") in (0, (prompt + text).count("</think>"))


@pytest.mark.parametrize("written", ["beside", "within"])
@pytest.mark.parametrize("name", FILES)
def test_a_thought_is_opened_once_and_closed_once(
    name: str, written: str, kind_dir: Callable[[str], Path]
) -> None:
    encoder = encoder_of(name, kind_dir("qwen-base"))
    row = dict(FORMS["reasoning"][0])
    if written == "within":
        row = {
            "prompt": "What is 2+2?",
            "chosen": "<think>\nTwo and two.\n</think>\n\nIt is 4.",
            "rejected": "It is 5.",
        }
    found = encoder.encode([parse_row(row, Columns())])[0]
    assert isinstance(found, Encoded)
    for ids in (found.chosen, found.rejected):
        text = encoder.tokenizer.decode(found.prompt + ids).rpartition("What is 2+2?")[2]
        assert text.count("</think>") <= 1 and text.count("<think>") in (0, 1)
        assert text.count("<think>") == text.count("</think>")
    told = "reasoning_left_out" in found.notes
    assert told or "Two and two." in encoder.tokenizer.decode(found.chosen)
