"""Why a row is left out, and what is worth knowing about rows that are used."""

from __future__ import annotations

# Every reason a row can be left out for, in words for the data report.
REASONS = {
    "not_json": "the line is not JSON",
    "not_an_object": "the row is not an object with columns",
    "missing_column": "the row lacks the column of an answer",
    "wrong_type": "a text or message list was expected",
    "serialised": "the text is a serialised message list that cannot be read",
    "not_text": "a message or column holds an image, audio or other part that is not text",
    "broken_text": "a text holds half a character (a lone surrogate)",
    "unknown_role": "a message has a role other than system, user, assistant, tool",
    "empty_prompt": "the prompt is empty",
    "empty_chosen": "the chosen answer is empty",
    "empty_rejected": "the rejected answer is empty",
    "end_inside": "an answer holds the end-of-text token in its middle",
    "identical_answers": "chosen and rejected are the same",
    "same_when_rendered": "the chat template leaves out what the answers say or differ in",
    "mismatched_prompts": "chosen and rejected answer different prompts",
    "no_prompt": "no prompt, and the answers are no whole conversations; name its column "
    "(prompt_text_column), or set implicit_prompt to take what both answers begin with",
    "no_shared_prompt": "no prompt column, and the two sides share no beginning",
    "template_refused": "the chat template does not accept these messages",
    "foreign_marks": "the prompt is rendered by the chat template of another model; give messages, "
    "or set chat_template none to train on it as it is",
    "special_inside": "the prompt holds a special token of the tokenizer in its middle, which "
    "would be read as a mark; remove it, or set chat_template none to train on it as it is",
    "unranked": "no answer of the list is ranked above another",
    "no_difficulty": "the difficulty column holds no number",
    "over_length": "no room for prompt and answer within the length limits",
}

# What is worth knowing about rows that are used, in words for the data report.
NOTES: dict[str, str] = {
    "lower_score": "the chosen answer has the lower score",
    "rendered": "a prompt that is rendered already, taken as it is",
    "instruction": "a prompt in the form '### Instruction: …', taken as it is",
    "thought_closed": "an answer without a thought, where the chat template opens one before every "
    "answer; it is closed at once",
    "reasoning_left_out": "the reasoning of an answer is left out by the chat template",
    "calls_left_out": "tool calls are left out by the chat template",
    "tools_left_out": "the tools are left out by the chat template",
    "message_left_out": "a message of the prompt is left out by the chat template",
}


class Unusable(Exception):
    """A row that has to be left out.

    reason: a key of ``REASONS``. detail: what this row adds to it, in a few words.
    """

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS, reason
        super().__init__(reason)
        self.reason, self.detail = reason, detail

    def at(self, origin: str) -> str:
        """Where the row stands, and what it adds to the reason."""
        return f"{origin}, {self.detail}" if self.detail else origin

    @property
    def sentence(self) -> str:
        """The reason in words, with what this row adds to it."""
        return REASONS[self.reason] + (f" ({self.detail})" if self.detail else "")
