"""The forms in which prompts and answers come, and the text that each of them becomes."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orpo_dist.data.messages import Message, words
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.template import ChatTemplate, left_out
from orpo_dist.data.thoughts import OPENED
from orpo_dist.data.transcripts import INSTRUCTION, RENDERED, is_rendered

Answer = str | Message


@dataclass(frozen=True)
class Texts:
    """A prompt and its answers as text, ready to tokenise, without end tokens.

    form: ``messages`` and ``wrapped`` (a plain prompt as a user's message) went through the chat
    template, ``rendered`` had been through it before, ``plain`` never. notes: keys of ``NOTES``.
    """

    prompt: str
    answers: list[str]
    form: str
    notes: tuple[str, ...] = ()


class Forms:
    """Finds out what a prompt is and renders it once, or not at all where it was rendered before.

    wraps_strings: whether a plain prompt becomes a user's message.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate, wraps_strings: bool):
        self.tokenizer, self.template, self.wraps_strings = tokenizer, template, wraps_strings
        self._specials = _any_of(_special_texts(tokenizer))
        self._ends = {tokenizer.eos_token, tokenizer.convert_ids_to_tokens(template.end_id)}

    def texts(
        self,
        prompt: str | list[Message],
        answers: Sequence[Answer],
        tools: list[Any] | None = None,
    ) -> Texts:
        """Prompt and answers as text; raises ``Unusable`` if the template refuses the messages."""
        if isinstance(prompt, str) and (whole := self._whole(prompt, answers)):
            return whole
        form = self._form(prompt) if isinstance(prompt, str) else "messages"
        if form != "plain":
            bare = [self._without_opening(answer) for answer in answers]
            if form == "rendered" and answers and all(map(operator.ne, bare, answers)):
                prompt = self._opened(str(prompt))
            answers = bare if form == "rendered" else [self._without_lead(one) for one in bare]
        if form in ("messages", "wrapped"):
            talk = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            text, turns, notes = self.template.turns(talk, answers, tools)
            notes += tuple(note for turn in turns for note in turn.notes)
            return Texts(text, [self._strip_end(t.text) for t in turns], form, _once(notes))
        assert isinstance(prompt, str)
        contents = [a if isinstance(a, str) else a["content"] for a in answers]
        notes = (form,) if form in ("rendered", "instruction") else ()
        for answer, text in zip(answers, contents, strict=True):
            notes += () if isinstance(answer, str) else left_out(answer, text)
        form = "plain" if form == "instruction" else form
        return Texts(prompt, [self._strip_end(text) for text in contents], form, _once(notes))

    def _form(self, prompt: str) -> str:
        """What a prompt given as text is; raises ``Unusable`` for what cannot be meant."""
        if not self.wraps_strings:
            return "plain"
        around = {self.template.opening.strip(), self.template.header.strip()} - self._ends
        marks = [mark for mark in around if mark and self._is_mark(mark)]
        if any(mark in prompt for mark in marks):
            return "rendered"
        if found := RENDERED.match(prompt):
            mark = re.split(r"(?=[<\[])", found[0].strip())[-1]
            if not self.template.writes(mark) and not self._specials.search(mark):
                raise Unusable("foreign_marks", mark)
            return "rendered"
        if special := self._specials.search(prompt):
            if not prompt[: special.start()].strip():
                return "rendered"
            raise Unusable("special_inside", special[0])
        return "instruction" if INSTRUCTION.search(prompt) else "wrapped"

    def _is_mark(self, text: str) -> bool:
        """Whether a template's text can be told from what people write."""
        return is_rendered(text) or self._specials.search(text) is not None

    def _whole(self, prompt: str, answers: Sequence[Answer]) -> Texts | None:
        """Rendered conversations that hold their prompt, split at the last turn; None: others."""
        mark = self.template.opening or self.template.header
        mark = mark if all(mark in words(answer) for answer in answers) else mark.strip()
        whole = [a for a in answers if isinstance(a, str) and mark and a.rfind(mark) > 0
                 and is_rendered(a)]  # fmt: skip
        if len(whole) < len(answers) or not answers:
            if not prompt:
                raise Unusable("foreign_marks" if answers else "empty_prompt")
            return None
        heads = {text[: text.rfind(mark) + len(mark)] for text in whole}
        asked = "".join(OPENED.sub("", prompt).split())
        if len(heads) > 1 or asked not in "".join(min(heads).split()):
            raise Unusable("mismatched_prompts")
        found = [self._strip_end(text.rpartition(mark)[2]) for text in whole]
        return Texts(heads.pop(), found, "rendered", ("rendered",))

    def _without_opening(self, answer: Answer) -> Answer:
        """A text without the mark that begins the assistant's turn: the prompt ends with it."""
        opening = self.template.opening
        if isinstance(answer, str) and self._is_mark(opening):
            return answer.removeprefix(opening).removeprefix(opening.strip())
        return answer

    def _without_lead(self, answer: Answer) -> Answer:
        """A rendered text without what the template will write before it once more."""
        if isinstance(answer, str) and self._strip_end(answer) != answer:
            return answer.removeprefix(self.template.lead)
        return answer

    def _opened(self, prompt: str) -> str:
        """A rendered prompt, up to the mark that begins the assistant's turn."""
        opening = self.template.opening
        if prompt.endswith((opening, opening.rstrip())) or not self._is_mark(opening):
            return prompt
        return prompt + opening

    def _strip_end(self, answer: str) -> str:
        bare = answer.rstrip()
        while end := next((end for end in self._ends if bare.endswith(end)), None):
            answer = bare = bare.removesuffix(end).rstrip()
        return answer


def _special_texts(tokenizer: Any) -> list[str]:
    """The special tokens of a tokenizer, as text."""
    added = tokenizer.added_tokens_decoder.values()
    found = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    return sorted(token for token in found if token.strip())


def _any_of(texts: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _once(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))
