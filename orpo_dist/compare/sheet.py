"""What is compared: prompts with two answers each, shuffled, and the key that unblinds them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.generation.prompts import Prompt, prompt_lines, text_lines


@dataclass(frozen=True)
class Item:
    """One prompt and the answers of models a and b. swapped: b stands on the left."""

    prompt: str
    a: str
    b: str
    swapped: bool

    @property
    def sides(self) -> tuple[str, str]:
        return (self.b, self.a) if self.swapped else (self.a, self.b)


@dataclass(frozen=True)
class Sheet:
    """Items in the order in which people see them. names: of models a and b."""

    names: tuple[str, str]
    items: tuple[Item, ...]

    @property
    def id(self) -> str:
        """A fingerprint of all that a rater can see; ratings name it."""
        return _fingerprint([(item.prompt, *item.sides) for item in self.items])

    def write_key(self, path: Path) -> None:
        """The only place that says who wrote what. Its digest covers that too, so unlike ``id`` it
        must not get onto the page."""
        content = {"comparison": self.id, "a": self.names[0], "b": self.names[1],
                   "items": [vars(item) for item in self.items]}  # fmt: skip
        content["digest"] = _fingerprint(content)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read_key(cls, path: Path) -> Sheet:
        """Raises ``UserError`` if the file is no key, or was changed."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            items = tuple(Item(**entry) for entry in content["items"])
            sheet = cls((content["a"], content["b"]), items)
            digest = content.pop("digest", None)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"key {path}: cannot be read ({error})") from error
        if digest is None:
            raise UserError(
                f"key {path}: an older version wrote it, without a digest to check it by; make the "
                "same comparison again to write it anew"
            )
        if digest != _fingerprint(content):
            raise UserError(f"key {path}: does not fit its own digest; it was changed")
        return sheet


def _fingerprint(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def make_sheet(
    names: tuple[str, str], prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], seed: int
) -> Sheet:
    """Shuffle the prompts and, of each, the sides. answers: those of a, and those of b.

    Answers that are the same word for word tell nothing apart and are left out. Raises
    ``UserError`` if no pair of answers differs.
    """
    draw = random.Random(seed)  # noqa: S311 (no secret: it must be repeatable)
    items = [
        Item(_whole(prompt_lines(prompt)), _whole(a), _whole(b), draw.random() < 0.5)
        for prompt, a, b in zip(prompts, *answers, strict=True)
        if a.strip() != b.strip()
    ]
    if not items:
        raise UserError("compare: both models give the same answer to every prompt")
    draw.shuffle(items)
    return Sheet(names, tuple(items))


def _whole(text: str) -> str:
    """Text that HTML in UTF-8 can hold, whatever a model wrote."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def read_answers(path: Path) -> dict[str, tuple[Prompt, str]]:
    """Answers in a file of ``generate --json`` or ``ensemble generate --json``, by prompt."""
    found: dict[str, tuple[Prompt, str]] = {}
    try:
        lines = text_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"answers {path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            answer = row["answer"] if "answer" in row else _only(row["answers"])
            if not isinstance(answer, str):
                raise TypeError("an answer must be text")
            prompt_lines(row["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"answers {path}:{number}: is no row of answers ({error})") from error
        found[json.dumps(row["prompt"])] = (row["prompt"], answer)
    return found


def _only(answers: dict[str, str]) -> str:
    if len(answers) != 1:
        raise ValueError(f"holds answers of {len(answers)} models; one is needed")
    return next(iter(answers.values()))
