"""``orpo-dist generate``: models beside one another, sampling, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orpo_dist import UserError, load
from orpo_dist.cli import main
from orpo_dist.generation.chat import chat
from orpo_dist.generation.speakers import speakers
from tests.conftest import CHATML

SHORT = ("--max-new-tokens", "6")


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
