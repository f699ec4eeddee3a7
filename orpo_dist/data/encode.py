"""Examples -> token ids: chat template, beginning and end tokens, truncation.

The prompt is tokenised exactly as it will be at inference, so both answers share its ids. Every
answer ends with the end-of-answer token once, also when the answer had to be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.data.bounds import require_end
from orpo_dist.data.forms import Answer, Forms, Texts
from orpo_dist.data.messages import Message
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.rows import Example
from orpo_dist.data.template import PLAIN_TEMPLATE, ChatTemplate


@dataclass(frozen=True)
class Limits:
    """Longest prompt, answer, and prompt + answer, in tokens; None: no limit.

    context: tokens that the model takes; rows: of its embedding; None: not known.
    """

    prompt: int | None = None
    completion: int | None = None
    sequence: int | None = None
    skip_overlong: bool = False
    context: int | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Encoded:
    """Token ids of one pair after truncation, with its lengths before; see ``Texts``."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    full_lengths: tuple[int, int, int]
    form: str = "plain"
    notes: tuple[str, ...] = ()


class Encoder:
    """Turns examples into token ids for one tokenizer.

    chat_template: None for the tokenizer's own, ``"none"`` for plain strings as they are, else a
    Jinja file or text; it is stored in the tokenizer, so that a saved model keeps it.
    options: further arguments of the template, such as ``enable_thinking``.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None = None,
        limits: Limits = Limits(),
        options: dict[str, Any] | None = None,
    ):
        require_end(tokenizer)
        self.tokenizer, self.limits = tokenizer, limits
        probe = tokenizer("a")["input_ids"]
        self._bos = [tokenizer.bos_token_id] if probe[:1] == [tokenizer.bos_token_id] else []
        own = tokenizer.chat_template
        if str(own).endswith(PLAIN_TEMPLATE):  # stored there by an older run
            own = None
        self.wraps_strings = chat_template != "none" and bool(own or chat_template)
        built_in = None
        if chat_template not in (None, "none"):
            tokenizer.chat_template = template_text(chat_template)
        elif not own:
            built_in = "{{ bos_token }}" * bool(self._bos) + PLAIN_TEMPLATE
        self.template = ChatTemplate(tokenizer, built_in, options)
        self.end_id = self.template.end_id
        self._forms = Forms(tokenizer, self.template, self.wraps_strings)
        self._adds_blank = " " in tokenizer.decode([*self._ids("x"), *self._ids("y")]).strip()

    def keep_template(self) -> None:
        """Store the built-in template in the tokenizer, now that something was rendered by it."""
        if self.template.source:
            self.tokenizer.chat_template = self.template.source

    def texts(
        self,
        prompt: str | list[Message],
        answers: Sequence[Answer],
        tools: list[Any] | None = None,
    ) -> Texts:
        """Prompt and answers as text; raises ``Unusable`` if the template refuses the messages."""
        return self._forms.texts(prompt, answers, tools)

    def encode_answer(
        self, prompt: str | list[Message], answer: str
    ) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and one answer, untruncated; for scoring."""
        texts = self.texts(prompt, [answer])
        ids, joint = self._tokenize([texts.prompt, texts.prompt + texts.answers[0]])
        return self.bos_of(texts) + ids, self._answer_ids(ids, joint, texts.answers[0])

    def prompt_ids(self, prompt: str | list[Message]) -> list[int]:
        """Token ids of a prompt alone, untruncated: what generation starts from."""
        texts = self.texts(prompt, [])
        return self.bos_of(texts) + self._ids(texts.prompt)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text as it is, after BOS where the tokenizer puts one."""
        return self._bos + self._ids(text)

    def encode(self, examples: Sequence[Example]) -> list[Encoded | Unusable]:
        """Tokenise a batch; an ``Unusable`` stands where an example cannot become a pair."""
        found: list[Texts | Unusable] = []
        for example in examples:
            try:
                found.append(self.pair_texts(example))
            except Unusable as unusable:
                found.append(unusable)
        readable = [
            (t.prompt, *(t.prompt + answer for answer in t.answers))
            for t in found
            if isinstance(t, Texts)
        ]
        ids = iter(self._tokenize([text for texts in readable for text in texts]))
        return [
            self._assemble(texts, [next(ids), next(ids), next(ids)])
            if isinstance(texts, Texts)
            else texts
            for texts in found
        ]

    def pair_texts(self, example: Example) -> Texts:
        """The texts of a pair; raises ``Unusable`` where they are none."""
        texts = self.texts(example.prompt, [example.chosen, example.rejected], example.tools)
        lost = {"reasoning_left_out", "calls_left_out"} & {*texts.notes}
        for text, reason in zip(texts.answers, ("empty_chosen", "empty_rejected"), strict=True):
            if not text.strip():  # it was nothing but end tokens, or calls
                raise Unusable("same_when_rendered" if lost else reason)
        if texts.answers[0] == texts.answers[1]:
            raise Unusable("same_when_rendered" if lost else "identical_answers")
        return texts

    def _ids(self, text: str) -> list[int]:
        return self._tokenize([text])[0]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def bos_of(self, texts: Texts) -> list[int]:
        """BOS where the tokenizer would add it to plain text; a template writes its own."""
        if texts.form in ("messages", "wrapped"):
            return []
        if texts.form == "rendered" and not self.template.begins_with_bos:
            return []
        return [] if texts.prompt.startswith(self.tokenizer.bos_token or "\0") else self._bos

    def _answer_ids(self, prompt: list[int], joint: list[int], answer: str) -> list[int]:
        """Ids of the answer after ``prompt``, the end token included.

        Where tokens merge across the boundary, the prompt stays as it is at inference, and the
        answer is tokenised alone: behind a line break where the tokenizer puts a blank before
        every text, so that prompt and answer still decode to their text.
        """
        if joint[: len(prompt)] == prompt and len(joint) > len(prompt):
            return [*joint[len(prompt) :], self.end_id]
        if self._adds_blank:
            anchor, anchored = self._tokenize(["\n", "\n" + answer])
            if anchored[: len(anchor)] == anchor and len(anchored) > len(anchor):
                return [*anchored[len(anchor) :], self.end_id]
        return [*self._ids(answer), self.end_id]

    def _assemble(self, texts: Texts, ids: list[list[int]]) -> Encoded | Unusable:
        chosen, rejected = (
            self._answer_ids(ids[0], joint, answer)
            for joint, answer in zip(ids[1:], texts.answers, strict=True)
        )
        if {self.end_id, self.tokenizer.eos_token_id} & {*chosen[:-1], *rejected[:-1]}:
            return Unusable("end_inside")
        prompt = self.bos_of(texts) + ids[0]
        begins = self.template.begins_with_bos if texts.form != "plain" else bool(self._bos)
        has_bos = begins and prompt[:1] == [self.tokenizer.bos_token_id]
        cut = self._truncate(prompt, chosen, rejected, has_bos)
        if isinstance(cut, Unusable):
            return cut
        full = (len(prompt), len(chosen), len(rejected))
        return Encoded(*cut, full, texts.form, texts.notes)

    def _truncate(
        self, prompt: list[int], chosen: list[int], rejected: list[int], has_bos: bool
    ) -> tuple[list[int], list[int], list[int]] | Unusable:
        """Cut the prompt on the left (BOS stays), each answer on the right by its own budget."""
        limits, full = self.limits, (len(prompt), len(chosen), len(rejected))
        sequence = limits.sequence or max(full) * 2
        # Without a limit of its own the prompt leaves room for the answers, or half of the whole.
        room = min(max(full[1:]), sequence // 2) if limits.prompt is None else 2
        longest_prompt = min(limits.prompt or len(prompt), sequence - room)
        if len(prompt) > longest_prompt:
            keep = longest_prompt - has_bos
            prompt = prompt[:has_bos] + prompt[len(prompt) - keep :]
        budget = min(limits.completion or max(full), sequence - len(prompt))
        chosen, rejected = (
            answer if len(answer) <= budget else [*answer[: budget - 1], self.end_id]
            for answer in (chosen, rejected)
        )
        cut = (len(prompt), len(chosen), len(rejected)) != full
        if (cut and limits.skip_overlong) or chosen == rejected:
            return Unusable("over_length" if cut else "identical_answers")
        return prompt, chosen, rejected


def template_text(template: str | None) -> str | None:
    """A chat template given as text or as the path of a file; None and "none" stay."""
    if template in (None, "none") or "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise UserError(
            f"chat_template {template}: is neither Jinja text nor a readable file"
        ) from error
