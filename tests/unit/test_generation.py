"""``orpo-dist generate``: prompts from everywhere, a fine-tune beside its base, the chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import UserError, load
from orpo_dist.cli import main
from orpo_dist.generation.chat import chat
from orpo_dist.generation.prompts import prompt_lines, read_prompts
from orpo_dist.generation.speakers import answers, speakers
from tests.conftest import DEMO

SHORT = ("--max-new-tokens", "6")


def test_prompts_from_every_place(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("one\n\n  two \none\n", encoding="utf-8")
    assert read_prompts(["zero"], str(text)) == ["zero", "one", "  two "]
    messages = [{"from": "human", "value": "Hi"}]
    rows = write_rows([
        {"prompt": "plain", "chosen": "a", "rejected": "b"},
        {"prompt": messages},
        {side: f"\n\nHuman: Why?\n\nAssistant: {side}" for side in ("chosen", "rejected")},
        {"prompt": "plain"},
    ])  # fmt: skip
    hi = {"role": "user", "content": "Hi"}
    assert read_prompts([], str(rows)) == ["plain", [hi], [{"role": "user", "content": "Why?"}]]
    assert read_prompts(["x"], None, system="Be brief.") == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    ]
    assert prompt_lines([hi]) == "Hi"
    assert prompt_lines([hi, {"role": "assistant", "content": "Yo"}]) == "user: Hi\nassistant: Yo"


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"question": "x"}, "pairs.jsonl:2: has no column 'prompt'"),
        ({"prompt": " "}, "pairs.jsonl:2: the prompt is empty"),
        ({"prompt": 3}, "pairs.jsonl:2: a text or message list was expected"),
    ],
)
def test_a_bad_row_is_named(row: Any, part: str, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="prompts-file") as mistake:
        read_prompts([], str(write_rows([{"prompt": "good"}, row])))
    assert part in str(mistake.value)


def test_answers_of_a_batch_are_those_of_single_prompts(tiny_model_dir: Path) -> None:
    (speaker,) = speakers(str(tiny_model_dir))
    prompts = ["a", "How do I boil an egg for my breakfast?", "b c d", "x"]
    batched = list(answers(speaker, prompts, 3, max_new_tokens=6))
    handle = load(tiny_model_dir)
    assert batched == [handle.generate(prompt, max_new_tokens=6) for prompt in prompts]
    assert len(set(batched)) > 1


def test_an_adapter_beside_its_base(
    tiny_model_dir: Path, adapter_dirs: list[Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out.jsonl"
    words = ["generate", str(adapter_dirs[0]), "--prompt", "Hello", "--prompt", "Why?", "--beside"]
    assert main([*words, *SHORT, "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    base, tuned = load(tiny_model_dir), load(adapter_dirs[0])
    for row in rows:
        assert row["answers"] == {
            "base": base.generate(row["prompt"], max_new_tokens=6),
            str(adapter_dirs[0]): tuned.generate(row["prompt"], max_new_tokens=6),
        }
        assert len(set(row["answers"].values())) == 2
    said = capsys.readouterr().out
    assert "> Hello" in said and said.count("[base]") == 2


def test_another_model_beside(
    tiny_model_dir: Path, other_model_dirs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(tiny_model_dir), "--prompt", "Hello", *SHORT]
    assert main([*words, "--beside", str(other_model_dirs[0])]) == 0
    assert f"[{other_model_dirs[0]}]" in capsys.readouterr().out
    assert main([*words, "--beside"]) == 2
    assert "does not say what it was trained from" in capsys.readouterr().err


def test_sampling_repeats_with_its_seed(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*flags: str) -> str:
        assert main(["generate", str(tiny_model_dir), "--prompt", "Hello", *SHORT, *flags]) == 0
        return capsys.readouterr().out

    warm = ("--temperature", "1.5", "--seed", "3")
    assert say(*warm) == say(*warm)
    assert say(*warm) != say("--temperature", "1.5", "--seed", "4")
    assert say(*warm, "--top-k", "1") == say()  # only the likeliest token is left
    assert say(*warm, "--top-p", "1e-6") == say()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--temperature", "-1"], "--temperature -1.0: is out of range"),
        (["--top-k", "-1"], "--top-k -1: is out of range"),
        (["--batch-size", "0"], "--batch-size 0: is out of range"),
        (["--chat"], "--chat takes its prompts from the keyboard"),
        (["--json", "./no/where"], "json no/where: its folder"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "./nowhere", "--prompt", "Hi", *words]) == 2
    assert part in capsys.readouterr().err


def test_chat_remembers_forgets_and_ends(
    adapter_dirs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    both = speakers(str(adapter_dirs[0]), "base")
    asked: list[list[dict[str, str]]] = []
    tuned = both[1].handle
    generate = tuned.generate

    def spy(prompt: Any, **options: Any) -> Any:
        asked.append([dict(message) for message in prompt])
        return generate(prompt, **options)

    tuned.generate = spy  # type: ignore[method-assign]
    lines = iter(["Hello", "", "/what", "And you?", "/new", "Hello"])

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    chat(both, {"max_new_tokens": 4}, "Be brief.", read)
    assert [len(talk) for talk in asked] == [2, 2, 4, 4, 2, 2]
    assert asked[2][0] == {"role": "system", "content": "Be brief."}
    assert asked[2][2]["role"] == "assistant"
    assert asked[2][2] != asked[3][2]  # each remembers its own answer
    said = capsys.readouterr().out
    assert said.count("[base]") == 3
    assert asked[2][2]["content"] in said


def test_a_long_conversation_loses_its_oldest_turns(tiny_model_dir: Path) -> None:
    (speaker,) = speakers(str(tiny_model_dir))
    lines = iter(["word " * 100] * 5 + ["/quit"])
    asked: list[int] = []
    generate = speaker.handle.generate

    def spy(prompt: Any, **options: Any) -> Any:
        asked.append(len(prompt))
        return generate(prompt, **options)

    speaker.handle.generate = spy  # type: ignore[method-assign]
    chat([speaker], {"max_new_tokens": 4}, None, lambda _: next(lines))
    assert asked[0] == 1 and asked[-1] < 9 and asked[-1] % 2 == 1
    lines = iter(["word " * 1000])
    with pytest.raises(UserError, match="context"):
        chat([speaker], {"max_new_tokens": 4}, None, lambda _: next(lines))


def test_prompts_of_the_demo_data(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ["generate", str(tiny_model_dir), "--prompts-file", str(DEMO / "eval.jsonl")]
    assert main([*words, "--max-new-tokens", "2", "--json", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 64
