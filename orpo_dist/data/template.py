"""A chat template as it behaves: what it writes around an answer, and what it leaves out.

Templates are programs in Jinja that nobody can read in advance, so all that is known about one here
was seen in what it renders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.data.messages import Message, reasoning_of
from orpo_dist.data.reasons import Unusable
from orpo_dist.data.thoughts import OPENED, after_opened, taken_apart, without_thought

# For tokenizers without a template of their own, when the data are messages. The blank stands
# before the answer, not at the end of the prompt: most tokenizers join it to the next word.
PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}Assistant: {{ m['content'] + eos_token + '\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n' }}"
    "{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

WORD = re.compile(r"\w+")

QUESTION, ANSWER = "QUESTION", "ANSWER"


@dataclass(frozen=True)
class Turn:
    """The text of one answer after its prompt, its end token left out, and notes on it."""

    text: str
    notes: tuple[str, ...] = ()


class ChatTemplate:
    """One template on one tokenizer. source: Jinja text; None for the tokenizer's own.

    end_id: the token that ends an answer; tail: what is written from there on. header: what stands
    between a question and its answer; opening: the part of it that begins the assistant's turn, if
    the template has one; lead: what follows it before an answer. begins_with_bos: whether its text
    begins with a true BOS.
    Raises ``UserError`` where the template fails on a plain question or loses it.
    """

    def __init__(
        self, tokenizer: Any, source: str | None = None, options: dict[str, Any] | None = None
    ):
        self.tokenizer, self.source, self.options = tokenizer, source, options or {}
        self._string_arguments: bool | None = None
        question = [{"role": "user", "content": QUESTION}]
        exchange = [*question, {"role": "assistant", "content": ANSWER}]
        try:
            self._parts = self._reads_only_parts(exchange)
            whole = self._render(exchange)
            prompt = self._render(question, generate=True)
            asked = self._render(question)
        except Exception as error:
            raise UserError(f"the chat template fails on a plain question: {error}") from error
        if ANSWER not in whole or QUESTION not in whole:
            raise UserError("the chat template writes no message content, as text or in parts")
        after = whole.rpartition(ANSWER)[2]
        self._exchange = whole
        self.end_id, self.tail = self._end_of(after)
        self.header = prompt.rpartition(QUESTION)[2]
        self.lead = whole.partition(prompt)[2].partition(ANSWER)[0]
        self.opening = OPENED.sub("", prompt.removeprefix(asked))  # of the assistant's turn
        bos = tokenizer.bos_token or ""
        # ChatML models name <|im_start|> their BOS; a true BOS stands once, at the very beginning.
        self.begins_with_bos = bool(bos) and prompt.startswith(bos) and prompt.count(bos) == 1

    def _reads_only_parts(self, exchange: list[Message]) -> bool:
        """Whether content has to be a list of parts: as text it is lost, or refused."""
        self._parts = False
        try:
            if ANSWER in self._render(exchange):
                return False
        except Exception:  # templates raise what they like; what is wrong is said with parts
            self._parts = True
            try:
                return ANSWER in self._render(exchange)
            except Exception:
                return False
        return True

    def _end_of(self, after: str) -> tuple[int, str]:
        """``(end token, text from it on)`` of what the template writes after an answer.

        What stands before the end token, as in Llama 2's `` </s>``, belongs to the answer.
        """
        tokenizer = self.tokenizer
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        end = next((i for i in ids if i in special), None)
        if end is None:
            return tokenizer.eos_token_id, after
        mark = tokenizer.convert_ids_to_tokens(end)
        return end, after[max(after.find(mark), 0) :]

    def _render(
        self, messages: Sequence[Message], generate: bool = False, tools: list[Any] | None = None
    ) -> str:
        text = self.tokenizer.apply_chat_template(
            [self._fitted(message) for message in messages],
            tools=tools,
            chat_template=self.source,
            tokenize=False,
            add_generation_prompt=generate,
            **self.options,
        )
        return str(text)

    def _fitted(self, message: Message) -> Message:
        """A message in the dialect of this template."""
        if message["role"] == "developer" and "developer" not in self.jinja():
            message = {**message, "role": "system"}
        if self._parts:
            message = {**message, "content": [{"type": "text", "text": message["content"]}]}
        if message.get("tool_calls"):
            message = {**message, "tool_calls": [self._call(one) for one in message["tool_calls"]]}
        return message

    def jinja(self) -> str:
        """The template itself."""
        return str(self.source or self.tokenizer.chat_template)

    def writes(self, mark: str) -> bool:
        """Whether a mark is one of this template's."""
        if mark in self.jinja() or mark in self._exchange:
            return True
        turns = [{"role": role, "content": QUESTION} for role in ("system", "user")]
        try:
            return mark in self._render(turns)
        except Exception:  # no system messages
            return False

    def _call(self, call: Any) -> Any:
        """A call with its arguments as an object, unless the template writes texts as they are."""
        function = call.get("function", call) if isinstance(call, dict) else {}
        arguments = function.get("arguments")
        if not isinstance(arguments, str) or self._takes_strings():
            return call
        try:
            function = {**function, "arguments": json.loads(arguments)}
        except ValueError:
            return call
        return {**call, "function": function} if "function" in call else function

    def _takes_strings(self) -> bool:
        """Whether arguments that are JSON text are written as they are, not quoted once more."""
        if self._string_arguments is None:
            self._string_arguments = True  # while it is tried
            call = {"id": "call00000", "type": "function",
                    "function": {"name": "f", "arguments": '{"a": 1}'}}  # fmt: skip
            turn = {"role": "assistant", "content": "", "tool_calls": [call]}
            try:
                text = self._render([{"role": "user", "content": QUESTION}, turn])
            except Exception:  # templates raise what they like; this one wants objects
                text = ""
            self._string_arguments = '{"a": 1}' in text
        return self._string_arguments

    def prompt(self, messages: list[Message], tools: list[Any] | None = None) -> str:
        """What generation starts from; raises ``Unusable`` if the template refuses the messages."""
        return self._accepted(messages, tools)[1]

    def _accepted(
        self, messages: list[Message], tools: list[Any] | None
    ) -> tuple[list[Message], str]:
        """The messages, without empty system messages if need be, and their prompt."""
        try:
            return messages, self._render(messages, True, tools)
        except Exception as error:  # templates raise what they like
            said = [m for m in messages if m["role"] != "system" or m["content"].strip()]
            if len(said) == len(messages) or not said:
                raise Unusable("template_refused", _first_line(error)) from error
            return self._accepted(said, tools)

    def turns(
        self,
        messages: list[Message],
        answers: Sequence[str | Message],
        tools: list[Any] | None = None,
    ) -> tuple[str, list[Turn], tuple[str, ...]]:
        """``(prompt, answers, notes)`` as the template writes them.

        A prompt that ends with the assistant is gone on with. Raises ``Unusable`` if the template
        refuses the messages.
        """
        if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
            return self._continued(messages, answers, tools)
        messages, prompt = self._accepted(messages, tools)
        found = [self._turn(prompt, messages, answer, tools) for answer in answers]
        return prompt, found, self._left_out(messages, prompt, tools)

    def _left_out(
        self, messages: list[Message], prompt: str, tools: list[Any] | None
    ) -> tuple[str, ...]:
        """Notes on what the prompt does not hold though the row has it."""
        notes = []
        if tools and _name(tools[0]) not in prompt:
            notes.append("tools_left_out")
        said = (m["content"] for m in messages if m["role"] != "assistant")  # thoughts are dropped
        if any(word not in prompt for text in said for word in WORD.findall(text[:200])[:3]):
            notes.append("message_left_out")
        if any(_calls_lost(message, prompt) for message in messages):
            notes.append("calls_left_out")
        return tuple(notes)

    def _turn(
        self, prompt: str, messages: list[Message], answer: str | Message, tools: list[Any] | None
    ) -> Turn:
        message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        try:
            whole = self._render([*messages, message], tools=tools)
        except Exception as error:
            raise Unusable("template_refused", _first_line(error)) from error
        notes: tuple[str, ...] = ()
        opened = OPENED.search(prompt)
        if whole.startswith(prompt):
            text = self._without_tail(whole[len(prompt) :])
        elif opened and whole.startswith(prompt[: opened.start()]):
            text = self._without_tail(whole[opened.start() :])
            text, closed = after_opened(opened, message, text)
            notes = ("thought_closed",) if closed else ()
        elif whole.startswith(bare := prompt.rstrip()):
            text = self._without_tail(whole[len(bare) :])
        else:
            text, dropped = without_thought(prompt, message["content"])
            notes = ("reasoning_left_out",) if dropped else ()
        if apart := taken_apart(message, text):
            return self._turn(prompt, messages, apart, tools)
        return Turn(text, notes + left_out(message, text))

    def _without_tail(self, text: str) -> str:
        return text.removesuffix(self.tail)

    def _continued(
        self, messages: list[Message], answers: Sequence[str | Message], tools: list[Any] | None
    ) -> tuple[str, list[Turn], tuple[str, ...]]:
        """The same, where the prompt ends with the beginning of the answer.

        White space at its end goes to the answers: most tokenizers join it to the next word.
        """
        *before, begun = messages
        start = begun["content"].rstrip()
        gap = begun["content"][len(start) :]
        try:
            head = self._render(messages, tools=tools).rpartition(start)[0]
            wholes = [self._render([*before, _joined(begun, a)], tools=tools) for a in answers]
        except Exception as error:
            raise Unusable("template_refused", _first_line(error)) from error
        prompt = head + start
        turns = []
        for whole, answer in zip(wholes, answers, strict=True):
            content = answer if isinstance(answer, str) else answer["content"]
            fits = whole.startswith(prompt)
            text = self._without_tail(whole[len(prompt) :]) if fits else gap + content
            turns.append(Turn(text))
        return prompt, turns, self._left_out(messages, prompt, tools)


def _joined(begun: Message, answer: str | Message) -> Message:
    """The assistant's turn from its beginning and the rest."""
    rest = {"content": answer} if isinstance(answer, str) else answer
    return {**begun, **rest, "content": begun["content"] + rest["content"]}


def left_out(message: Message, text: str) -> tuple[str, ...]:
    """Notes on what an answer has and its text has not."""
    notes = []
    if (thought := reasoning_of(message).strip()) and thought not in text:
        notes.append("reasoning_left_out")
    if _calls_lost(message, text):
        notes.append("calls_left_out")
    return tuple(notes)


def _calls_lost(message: Message, text: str) -> bool:
    return any(_name(call) not in text for call in message.get("tool_calls") or [])


def _name(described: Any) -> str:
    """The name of a tool or of a call, whether or not it is wrapped as a function."""
    function = described.get("function", described) if isinstance(described, dict) else {}
    return str(function.get("name", "")) if isinstance(function, dict) else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
