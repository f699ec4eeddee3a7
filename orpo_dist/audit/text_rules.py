"""Rules on single texts: roles, marks of templates, doubled BOS and EOS, and scripts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orpo_dist.audit.corpus import Corpus
from orpo_dist.audit.pairs import Hits
from orpo_dist.audit.rules import FEW_LETTERS
from orpo_dist.data.messages import Message, words

BEGIN = (r"<s>", r"<bos>", r"<\|begin_of_text\|>")
END = (
    r"</s>", r"<eos>", r"<\|im_end\|>", r"<\|endoftext\|>", r"<\|eot_id\|>", r"<\|end\|>",
    r"<end_of_turn>",
)  # fmt: skip
MARKS = (
    r"<\|[a-z_]+\|>", r"\[/?INST\]", r"<</?SYS>>", r"<start_of_turn>",
    r"(^|\n\n)(Human|Assistant): ",
)  # fmt: skip

# First code point, last code point, script. A script is not a language: English, French and
# Vietnamese are all Latin, Chinese is Han, Japanese mixes Han and Kana.
RANGES = (
    (0x41, 0x5A, "Latin"), (0x61, 0x7A, "Latin"), (0xC0, 0x24F, "Latin"),
    (0x1E00, 0x1EFF, "Latin"), (0x370, 0x3FF, "Greek"), (0x1F00, 0x1FFF, "Greek"),
    (0x400, 0x52F, "Cyrillic"), (0x530, 0x58F, "Armenian"), (0x590, 0x5FF, "Hebrew"),
    (0x600, 0x6FF, "Arabic"), (0x750, 0x77F, "Arabic"), (0x8A0, 0x8FF, "Arabic"),
    (0x900, 0x97F, "Devanagari"), (0x980, 0x9FF, "Bengali"), (0xA00, 0xDFF, "other Indic"),
    (0xE00, 0xE7F, "Thai"), (0xE80, 0x109F, "Lao, Tibetan, Myanmar"), (0x10A0, 0x10FF, "Georgian"),
    (0x1100, 0x11FF, "Hangul"), (0x1200, 0x139F, "Ethiopic"), (0x1780, 0x17FF, "Khmer"),
    (0x3040, 0x30FF, "Kana"), (0x3130, 0x318F, "Hangul"), (0x3400, 0x4DBF, "Han"),
    (0x4E00, 0x9FFF, "Han"), (0xAC00, 0xD7AF, "Hangul"), (0xF900, 0xFAFF, "Han"),
)  # fmt: skip
NONE = "no letters"
SCRIPTS = (NONE, *dict.fromkeys(name for _, _, name in RANGES))
TABLE = np.zeros(0x10000, np.uint8)
for _first, _last, _name in RANGES:
    TABLE[_first : _last + 1] = SCRIPTS.index(_name)
JAPANESE = {SCRIPTS.index("Han"), SCRIPTS.index("Kana")}


def check_texts(corpus: Corpus, prompts: Sequence[str], tokenizer: Any = None) -> Hits:
    """Odd roles, marks and doubled tokens; the tokenizer's own special tokens count too."""
    chosen = [words(example.chosen) for example in corpus.examples]
    rejected = [words(example.rejected) for example in corpus.examples]
    begin, end, special = set(BEGIN), set(END), set[str]()
    if tokenizer is not None:
        special = {re.escape(token) for token in tokenizer.all_special_tokens if token.strip()}
        begin |= {re.escape(tokenizer.bos_token)} if tokenizer.bos_token else set()
        end |= {re.escape(tokenizer.eos_token)} if tokenizer.eos_token else set()
    at_end = f"({_any(end)})\\s*$"
    marks = _any({*MARKS, *begin, *end, *special})
    ends = {"chosen": _matches(chosen, at_end), "rejected": _matches(rejected, at_end)}
    begins = _matches(prompts, f"^\\s*({_any(begin)})")
    # without the doubled tokens that have a rule of their own
    inside = {
        "prompt": _matches([re.sub(f"^\\s*({_any(begin)})", "", p) if b else p
                            for p, b in zip(prompts, begins, strict=True)], marks),
        "chosen": _matches(_cut(chosen, ends["chosen"], at_end), marks),
        "rejected": _matches(_cut(rejected, ends["rejected"], at_end), marks),
    }  # fmt: skip
    return {
        "double_bos": {int(pair): "the prompt's text" for pair in np.flatnonzero(begins)},
        "double_eos": _where(ends),
        "markers": _where(inside),
        "role_trouble": _odd_roles(corpus),
    }


def _any(patterns: Iterable[str]) -> str:
    return "|".join(sorted(patterns))


def _cut(texts: Sequence[str], which: np.ndarray, pattern: str) -> list[str]:
    return [re.sub(pattern, "", t) if w else t for t, w in zip(texts, which, strict=True)]


def _matches(texts: Sequence[str], pattern: str) -> np.ndarray:
    """(N,) bool; in Arrow, whose time is linear in the text whatever the pattern."""
    return np.asarray(pc.match_substring_regex(pa.array(texts, pa.large_string()), pattern), bool)


def _where(found: dict[str, np.ndarray]) -> dict[int, str]:
    hit = np.flatnonzero(np.logical_or.reduce(list(found.values())))
    return {
        int(pair): "in " + ", ".join(side for side, where in found.items() if where[pair])
        for pair in hit
    }


def _odd_roles(corpus: Corpus) -> dict[int, str]:
    hits = {}
    for pair, example in enumerate(corpus.examples):
        if not isinstance(example.prompt, str) and (said := _oddity(example.prompt)):
            hits[pair] = said
    return hits


def _oddity(messages: list[Message]) -> str:
    """What is odd about the roles of a prompt, or an empty string."""
    roles = [message["role"] for message in messages]
    if roles[-1] == "assistant":
        return "the prompt ends with the assistant"
    if roles[-1] == "system":
        return "the prompt ends with a system message"
    if "system" in roles[1:]:
        return "a system message is not the first"
    for role, following in itertools.pairwise(roles):
        if role == following and role != "tool":
            return f"{role} speaks twice in a row"
    return ""


def main_scripts(texts: Sequence[str]) -> np.ndarray:
    """(N,) index into ``SCRIPTS`` of what most letters of each text are; 0 below FEW_LETTERS."""
    return np.fromiter((_main_script(text) for text in texts), np.int64, len(texts))


def _main_script(text: str) -> int:
    if text.isascii():
        return int(sum(map(str.isalpha, text[: 4 * FEW_LETTERS])) >= FEW_LETTERS)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    counts = np.bincount(TABLE[codes[codes < len(TABLE)]], minlength=len(SCRIPTS))
    counts[0] = 0
    return int(counts.argmax()) if counts.sum() >= FEW_LETTERS else 0


def script_switches(prompts: np.ndarray, chosen: np.ndarray) -> dict[int, str]:
    """Pairs whose chosen answer is in another script than the prompt. Both (N,), see above."""
    hits = {}
    for pair in np.flatnonzero((prompts != chosen) & (prompts > 0) & (chosen > 0)):
        asked, answered = int(prompts[pair]), int(chosen[pair])
        if {asked, answered} != JAPANESE:
            hits[int(pair)] = f"from {SCRIPTS[asked]} to {SCRIPTS[answered]}"
    return hits
