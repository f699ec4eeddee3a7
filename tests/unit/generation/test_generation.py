"""``orpo-dist generate``: prompts from everywhere, a fine-tune beside its base, the chat."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import UserError, load
from orpo_dist.cli import main
from orpo_dist.generation.chat import chat
from orpo_dist.generation.prompts import prompt_lines, read_prompts
from orpo_dist.generation.speakers import answers, speakers
from tests.conftest import CHATML, DEMO

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
    text.write_bytes("a\u2028b\u0085c\r\nd".encode())
    assert read_prompts([], str(text)) == ["a\u2028b\u0085c", "d"]
    assert prompt_lines([hi]) == "Hi"
    assert prompt_lines([hi, {"role": "assistant", "content": "Yo"}]) == "user: Hi\nassistant: Yo"


def test_prompts_of_known_forms(write_rows: Callable[..., Path]) -> None:
    sides = {"chosen": "a", "rejected": "b"}
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    answers = [{"answer": text, "rank": n} for n, text in enumerate("abc")]
    for row, prompt in (
        ({"system": "S", "question": "Q", **sides}, asked),
        ({"system": "S", "question": "Q"}, asked),
        ({"instruction": "I", "input": "X", **sides}, "I\nX"),
        ({"instruction": "I", "input": "X", "output": "a"}, "I\nX"),
        ({"prompt": "Q", "answers": answers}, "Q"),
        ({"prompt": "Q", "chosen": "same", "rejected": "same"}, "Q"),
    ):
        assert read_prompts([], str(write_rows([row, row]))) == [prompt]
    with pytest.raises(UserError, match=r"there is a column 'question': set --prompt-text-column"):
        read_prompts([], str(write_rows([{"question": "Q"}])))


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


def test_a_file_without_prompts_and_a_mistyped_column_are_named(
    tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(UserError, match=r"^prompts-file .*empty\.txt: holds no prompts$"):
        read_prompts(["one"], str(empty))
    row = {"prompt": "x", "chosen": "It is so.", "rejected": "It is not."}
    with pytest.raises(UserError, match=r"pairs\.jsonl: has no column 'promt'"):
        read_prompts([], str(write_rows([row])), column="promt")


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
    for same in (str(tiny_model_dir), f"{tiny_model_dir}/"):
        assert main([*words, "--beside", same]) == 2
        assert f"beside {same}: is the same model" in capsys.readouterr().err


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
        (["--top-k", "5"], "need a --temperature above 0"),
        (["--top-p", "0.9", "--temperature", "0"], "need a --temperature above 0"),
        (["--seed", str(2**32)], f"--seed {2**32}: is out of range"),
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


def test_a_long_conversation_loses_its_oldest_turns(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    asked.clear()
    lines = iter(["Hello", "word " * 1000, "And you?", "/quit"])
    chat([speaker], {"max_new_tokens": 4}, None, lambda _: next(lines))
    assert asked == [1, 3]  # the line in between is forgotten, what stood before it is not
    assert "over the model's context" in capsys.readouterr().err


def altered(folder: Path, model: Path, name: str, text: str) -> str:
    """A copy of a model folder with one file written anew."""
    shutil.copytree(model, folder)
    (folder / name).write_text(text)
    return str(folder)


def test_flags_decide_not_the_generation_config(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"num_beams": 3, "repetition_penalty": 5.0, "return_dict_in_generate": True}
    model = altered(tmp_path / "m", tiny_model_dir, "generation_config.json", json.dumps(settings))
    said = []
    for path in (str(tiny_model_dir), model):
        assert main(["generate", path, "--prompt", "Hello", *SHORT]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    lines = iter(["Hello", "/quit"])
    chat(speakers(model), {"max_new_tokens": 4}, None, lambda _: next(lines))
    captured = capsys.readouterr()
    assert captured.out.strip() and "error" not in captured.err


def test_a_template_that_refuses_is_named(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    model = altered(tmp_path / "m", tiny_model_dir, "chat_template.jinja", picky + CHATML)
    reason = f"model {model}: the chat template does not accept these messages (no)"
    assert main(["generate", model, "--prompt", "Hi", "--system", "Be nice.", *SHORT]) == 2
    assert capsys.readouterr().err == f"orpo-dist: error: {reason}\n"
    lines = iter(["Hi", "/quit"])
    chat(speakers(model), {"max_new_tokens": 4}, "Be nice.", lambda _: next(lines))
    assert reason in capsys.readouterr().err
    system = [{"role": "system", "content": "Be nice."}]
    with pytest.raises(UserError, match="does not accept"):
        load(model).score(system, "Yes")
    with pytest.raises(UserError, match="does not accept"):
        load(model).generate(system)


def test_weights_that_are_not_finite(tiny_model: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model_dir, tmp_path / "m")
    tiny_model.lm_head.weight.data.fill_(float("nan"))
    tiny_model.save_pretrained(model)
    with pytest.raises(UserError, match=r"m: its weights or logits are not finite$"):
        load(model).generate("Hi", do_sample=True)


def test_the_handle_returns_all_texts_or_none(tiny_model_dir: Path) -> None:
    handle = load(tiny_model_dir)
    several = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 3}
    texts = handle.generate("Hello", **several)
    assert len(set(texts)) == 3
    assert handle.generate(["Hello", "Why?"], **several)[:3] == texts
    assert handle.generate([]) == []
    with pytest.raises(UserError, match="return_dict_in_generate"):
        handle.generate("Hello", return_dict_in_generate=True)


def test_prompts_of_the_demo_data(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ["generate", str(tiny_model_dir), "--prompts-file", str(DEMO / "eval.jsonl")]
    assert main([*words, "--max-new-tokens", "2", "--json", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 64
