"""Examples -> token ids: chat template, beginning and end tokens, truncation.

The prompt is tokenised exactly as it will be at inference, so both answers share its ids. Every
answer ends with the end-of-answer token once, also when the answer had to be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_dist.data.bounds import require_end
from orpo_dist.data.rows import Example, Message, Unusable
from orpo_dist.types import UserError

# For tokenizers without a template of their own, when the data are messages.
PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}Assistant: {{ m['content'] + eos_token + '\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n' }}"
    "{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)


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
    """Token ids of one pair after truncation, with its lengths before."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    full_lengths: tuple[int, int, int]


class Encoder:
    """Turns examples into token ids for one tokenizer.

    chat_template: None for the tokenizer's own, ``"none"`` for plain strings as they are, else a
    Jinja file or text; it is stored in the tokenizer, so that a saved model keeps it.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None, limits: Limits = Limits()):
        require_end(tokenizer)
        self.tokenizer, self.limits = tokenizer, limits
        probe = tokenizer("a")["input_ids"]
        self._bos = [tokenizer.bos_token_id] if probe[:1] == [tokenizer.bos_token_id] else []
        own = tokenizer.chat_template
        if str(own).endswith(PLAIN_TEMPLATE):  # stored there by an encoder, maybe of an older run
            own = None
        self.wraps_strings = chat_template != "none" and bool(own or chat_template)
        if chat_template not in (None, "none"):
            tokenizer.chat_template = template_text(chat_template)
        elif not own:
            tokenizer.chat_template = "{{ bos_token }}" * bool(self._bos) + PLAIN_TEMPLATE
        self._tail, self.end_id, self._template_bos = self._study_template()

    def _study_template(self) -> tuple[str, int, bool]:
        """What the template puts after an answer, its end token, and whether it begins with BOS."""
        question, answer = [{"role": "user", "content": "Q"}], "ANSWER"
        try:
            prompt = self._render(question, generate=True)
            whole = self._render([*question, {"role": "assistant", "content": answer}])
        except Exception as error:
            raise UserError(f"the chat template fails on a plain question: {error}") from error
        tail = whole.rpartition(answer)[2]
        ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        end = next((i for i in ids if i in special), self.tokenizer.eos_token_id)
        bos = self.tokenizer.bos_token or ""
        # ChatML models name <|im_start|> their BOS; a true BOS stands once, at the very beginning.
        return tail, end, bool(bos) and prompt.startswith(bos) and prompt.count(bos) == 1

    def _render(self, messages: Sequence[Message], generate: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generate
        )

    def texts(self, prompt: str | list[Message], answers: Sequence[str]) -> list[str]:
        """``[prompt, *answers]`` as text, ready to tokenise, without end tokens.

        Raises ``Unusable`` if the template refuses the messages.
        """
        if not isinstance(prompt, str) or self.wraps_strings:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            try:
                prompt = self._render(messages, generate=True)
                answers = [self._answer_text(prompt, messages, answer) for answer in answers]
            except Exception as error:  # templates raise what they like
                raise Unusable("template_refused") from error
        return [prompt, *(self._strip_end(answer) for answer in answers)]

    def _answer_text(self, prompt: str, messages: list[Message], answer: str) -> str:
        """The answer as the template writes it after ``prompt``, without what follows it."""
        whole = self._render([*messages, {"role": "assistant", "content": answer}])
        if not whole.startswith(prompt):
            return answer
        return whole[len(prompt) :].removesuffix(self._tail)

    def _strip_end(self, answer: str) -> str:
        ends = {self.tokenizer.eos_token, self.tokenizer.convert_ids_to_tokens(self.end_id)}
        bare = answer.rstrip()
        while end := next((end for end in ends if bare.endswith(end)), None):
            answer = bare = bare.removesuffix(end).rstrip()
        return answer

    def encode_answer(
        self, prompt: str | list[Message], answer: str
    ) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and one answer, untruncated; for scoring."""
        text, bare = self.texts(prompt, [answer])
        ids, joint = self._tokenize([text, text + bare])
        return self._bos_of(prompt) + ids, self._answer_ids(ids, joint, bare)

    def prompt_ids(self, prompt: str | list[Message]) -> list[int]:
        """Token ids of a prompt alone, untruncated: what generation starts from."""
        return self._bos_of(prompt) + self._tokenize(self.texts(prompt, []))[0]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text as it is, after BOS where the tokenizer puts one."""
        return self._bos + self._tokenize([text])[0]

    def encode(self, examples: Sequence[Example]) -> list[Encoded | Unusable]:
        """Tokenise a batch; an ``Unusable`` stands where an example cannot become a pair."""
        found: list[list[str] | Unusable] = []
        for example in examples:
            try:
                found.append(self._pair_texts(example))
            except Unusable as unusable:
                found.append(unusable)
        readable = [texts for texts in found if not isinstance(texts, Unusable)]
        ids = iter(self._tokenize([t for p, c, r in readable for t in (p, p + c, p + r)]))
        return [
            texts
            if isinstance(texts, Unusable)
            else self._assemble(example.prompt, texts, [next(ids), next(ids), next(ids)])
            for example, texts in zip(examples, found, strict=True)
        ]

    def _pair_texts(self, example: Example) -> list[str]:
        texts = self.texts(example.prompt, [example.chosen, example.rejected])
        for text, reason in zip(texts[1:], ("empty_chosen", "empty_rejected"), strict=True):
            if not text.strip():  # it was nothing but end tokens
                raise Unusable(reason)
        return texts

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def _is_plain(self, prompt: str | list[Message]) -> bool:
        return isinstance(prompt, str) and not self.wraps_strings

    def _bos_of(self, prompt: str | list[Message]) -> list[int]:
        """BOS for plain text, where the tokenizer would add it; a template writes its own."""
        return self._bos if self._is_plain(prompt) else []

    def _answer_ids(self, prompt: list[int], joint: list[int], answer: str) -> list[int]:
        """Ids of the answer after ``prompt``, the end token included."""
        if joint[: len(prompt)] == prompt and len(joint) > len(prompt):
            return [*joint[len(prompt) :], self.end_id]
        # Tokens merged across the boundary; at inference the prompt stands alone, so here too.
        return [*self._tokenize([answer])[0], self.end_id]

    def _assemble(
        self, prompt: str | list[Message], texts: list[str], ids: list[list[int]]
    ) -> Encoded | Unusable:
        chosen = self._answer_ids(ids[0], ids[1], texts[1])
        rejected = self._answer_ids(ids[0], ids[2], texts[2])
        if {self.end_id, self.tokenizer.eos_token_id} & {*chosen[:-1], *rejected[:-1]}:
            return Unusable("end_inside")
        bos = self._bos_of(prompt)
        has_bos = bool(bos) if self._is_plain(prompt) else self._template_bos
        return self._truncate(bos + ids[0], chosen, rejected, has_bos)

    def _truncate(
        self, prompt: list[int], chosen: list[int], rejected: list[int], has_bos: bool
    ) -> Encoded | Unusable:
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
        return Encoded(prompt, chosen, rejected, full)


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
