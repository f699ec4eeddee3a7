"""The command line: flags, their words, exit codes, and one line for every mistake."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import orpo_dist
from orpo_dist import cli
from orpo_dist.config import ORPOConfig, load_config

LIBRARIES = ("torch", "transformers", "datasets", "ray", "matplotlib")
HEAVY = ("torch", "pydantic", "transformers", "datasets", "numpy", "yaml", "jinja2")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orpo_dist", *arguments], capture_output=True, text=True, check=False
    )


def only_line(stderr: str) -> str:
    assert stderr.endswith("\n") and stderr.count("\n") == 1, stderr
    assert stderr.startswith("orpo-dist: error: ")
    return stderr.removeprefix("orpo-dist: error: ").rstrip("\n")


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence on stderr of a command that must fail with code 2 and print nothing else."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return only_line(captured.err)


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["train", "--dry-run", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return yaml.safe_load(captured.out)


def help_of(capsys: pytest.CaptureFixture[str], command: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def kebab(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0 and result.stderr == ""
    assert all(command in result.stdout for command in cli.COMMANDS)


@pytest.mark.timing
def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert run("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.5


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--help"], HEAVY),
        (["report", "--help"], HEAVY),
        (["generate", "--help"], HEAVY),
        *(([command, "--help"], LIBRARIES) for command in cli.COMMANDS),
        (["train", "--dry-run"], LIBRARIES),
        (["train", "--beta", "0.1"], LIBRARIES),
        (["train", "--lr", "-1"], LIBRARIES),
        (["sweep", "smoke", "--dry-run"], LIBRARIES),
        (["generate", "m", "--prompt", "Hi", "--batch-size", "0"], LIBRARIES),
        (["evaluate", "m", "--data-path", "x", "--json", "a", "--html", "a"], LIBRARIES),
        (["ensemble", "soup", "out", "a", "b", "--weights", "1", "2"], LIBRARIES),
        (["ensemble", "train", "smoke", "--dry-run"], LIBRARIES),
        (["compare", "a", "b", "--limit", "0"], LIBRARIES),
        (["plan", "--model", "m", "--gpus", "-1"], LIBRARIES),
        (["launch", "ddp", "--dry-run", "--", "train", "--lr", "-1"], LIBRARIES),
    ],
)
def test_talking_loads_no_libraries(arguments: list[str], refused: tuple[str, ...]) -> None:
    program = (
        "import sys\nfrom orpo_dist.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"loaded = [m for m in {refused!r} if m in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_every_setting_is_a_flag_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of(capsys, "train").split())
    for name, field in ORPOConfig.model_fields.items():
        assert f"{kebab(name)} " in text, name
        assert str(field.description).split(";")[0][:30] in text.replace("- ", "-"), name
    assert "_" not in "".join(word for word in text.split() if word.startswith("--"))
    assert "(default: 5e-05)" in text and "completion|prompt_and_completion" in text


def test_other_commands_show_only_what_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "evaluate")
    assert "--text-column" in text and "--batch-size" in text and "--json" in text
    assert "--lr" not in text and "--epochs" not in text
    assert "--max-new-tokens" in help_of(capsys, "generate")
    assert "run folder" in help_of(capsys, "report")


@pytest.mark.parametrize("name", sorted(ORPOConfig.model_fields))
def test_each_flag_sets_its_own_field(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {
        "trainer": "orpo",
        "data_path": ["a", "b"],
        "valid_data_path": ["a", "b"],
        "data_weights": [2.0],
        "data_format": "alpaca",
        "chat_template_kwargs": {"enable_thinking": False},
        "overlong": "skip",
        "curriculum": "length",
        "curriculum_pacing": "root",
        "orpo_alpha_schedule": "ramp",
        "attention": "padded",
        "kernels": "none",
        "loss_form": "convex",
        "nll_scope": "prompt_and_completion",
        "mixed_precision": "bf16",
        "quantization": "int8",
        "lora_dtype": "bfloat16",
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "async_save": False,
        "trainer_args": {"adam_beta2": 0.9},
        "stages": [{"lr": 0.25}, {"epochs": 1}],
    }
    needed = {
        "data_weights": ["--data-path", "a"],
        "data_temperature": ["--data-path", "a", "b"],
        "quantization": ["--peft"],
        "use_dora": ["--peft"],
        "lora_dtype": ["--peft"],
        "merge_adapter": ["--peft"],
        "activation_offload": ["--gradient-checkpointing"],
        "max_seq_length": ["--max-prompt-length", "2"],
    }
    default = ORPOConfig.model_fields[name].default
    if name in values:
        value = values[name]
    elif default is False or name == "load_best_model_at_end":
        value = True
    elif isinstance(default, float) or name in (
        "epochs",
        "data_temperature",
        "router_aux_loss_coef",
    ):
        value = 0.25
    elif isinstance(default, int) or name.endswith(
        ("_steps", "_length", "_patience", "_microbatch", "_batch_size")
    ):
        value = 77
    else:
        value = "word"
    words = value if isinstance(value, list) and name != "stages" else [value]
    words = [
        json.dumps(word) if isinstance(word, (dict, list, bool)) else str(word) for word in words
    ]
    found = dry_run(capsys, kebab(name), *words, *needed.get(name, []))
    assert found[name] == value
    touched = {key for key, setting in found.items() if setting != ORPOConfig().model_dump()[key]}
    unchanged = {"trainer"} & {name}
    expected = {flag[2:].replace("-", "_") for flag in needed.get(name, []) if flag[:2] == "--"}
    assert touched == {name, *expected} - unchanged


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--peft"], True),
        (["--peft", "true"], True),
        (["--peft", "yes"], True),
        (["--peft=true"], True),
        (["--peft", "false"], False),
        (["--peft=no"], False),
        (["--no-peft"], False),
        (["--peft", "--no-peft"], False),
        (["--no-peft", "--peft"], True),
        ([], False),
    ],
)
def test_boolean_flags(words: list[str], value: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(capsys, *words)["peft"] is value


def test_flags_can_unset_what_the_file_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("peft: true\nlr: 1e-4\nmax_completion_length: 64\nbatch_size: 2\n")
    flags = ["--no-peft", "--max-prompt-length", "none", "--max-completion-length", "none"]
    found = dry_run(capsys, "--config", str(path), *flags, "--batch-size", "8")
    assert (found["peft"], found["lr"], found["batch_size"]) == (False, 1e-4, 8)
    assert (found["max_prompt_length"], found["max_completion_length"]) == (None, None)


def test_none_and_no_stay_words_where_they_are_choices(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--mixed-precision", "--log", "--chat-template", "--eval-strategy"]
    words = [word for flag in flags for word in (flag, "no" if "eval" in flag else "none")]
    found = dry_run(capsys, *words)
    assert (found["mixed_precision"], found["log"]) == ("none", "none")
    assert (found["chat_template"], found["eval_strategy"]) == ("none", "no")


@pytest.mark.parametrize(
    "text", ['{"adam_beta2": 0.95, "debug": ["x"]}', "{adam_beta2: 0.95, debug: [x]}"]
)
def test_trainer_args_in_json_and_yaml(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(capsys, "--trainer-args", text)["trainer_args"] == {
        "adam_beta2": 0.95,
        "debug": ["x"],
    }


@pytest.mark.parametrize("text", ["{", "3", "2024-13-45", '{"learning_rate": 1}'])
def test_bad_trainer_args(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "train", "--trainer-args", text).startswith("trainer_args")


def test_dry_run_prints_the_config_as_yaml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data-path", "a.jsonl", "b.csv", "--data-weights", "1", "0.5", "--lr", "5e-6"]
    template = "{% for m in messages %}\n{{ m['content'] }}{% endfor %}"
    assert cli.main(["train", "--dry-run", *flags, "--chat-template", template]) == 0
    path = tmp_path / "again.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(path) == ORPOConfig(
        data_path=["a.jsonl", "b.csv"], data_weights=[1, 0.5], lr=5e-6, chat_template=template
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--beta", "0.1"], ["'--beta'", "called --orpo-alpha"]),
        (["--beta=0.1"], ["'--beta'", "--orpo-alpha"]),
        (["--learning-rate", "1"], ["'--learning-rate'", "called --lr"]),
        (["--orpo-alhpa", "1"], ["did you mean --orpo-alpha"]),
        (["--batch_size", "1"], ["'--batch_size'", "did you mean --batch-size"]),
        (["--quux-zap", "1"], ["--help"]),
        (["--epoch", "1"], ["--epochs"]),  # no silent abbreviations
        (["--lr"], ["--lr", "expected one argument", "train --help"]),
        (["stray"], ["unexpected argument 'stray'"]),
        (["--lr", "-1"], ["lr: ", "greater than 0", "'-1'"]),
        (["--lr", "fast"], ["lr: ", "'fast'"]),
        (["--peft", "maybe"], ["peft: ", "'maybe'"]),
        (["--quantization", "int4"], ["--peft"]),
        (["--data-path", "x.jsonl"], ["model is missing", "--model"]),
        (["--model", "x"], ["data_path is missing", "--data-path"]),
        (["--model", "./nowhere", "--data-path", "x"], ["model ./nowhere: no such folder"]),
        (["--config", "nowhere.yaml"], ["config nowhere.yaml", "No such file"]),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = mistake(capsys, "train", *arguments)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["generate", "./nowhere"], "--prompt"),
        (["generate", "./nowhere", "--prompts-file", "./none.txt"], "prompts-file ./none.txt"),
        (["generate", "./nowhere", "--prompt", "Hi"], "./nowhere"),
        (["evaluate", "./nowhere", "--data-path", "./none.jsonl"], "./nowhere"),
        (["evaluate", "./nowhere", "--batch-size", "0"], "batch_size: "),
        (["report", "./nowhere"], "not a run folder"),
    ],
)
def test_mistakes_of_the_other_commands(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part in mistake(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--foo", "train"], "unknown flag '--foo': flags stand behind the command"),
        (["--foo"], "unknown flag '--foo': flags stand behind the command"),
        (["--lr", "3", "train"], "unknown flag '--lr': flags stand behind the command"),
        (["--verison"], "unknown flag '--verison': did you mean --version?"),
        (["--versio"], "unknown flag '--versio': did you mean --version?"),  # no abbreviations
        (["-v"], "unknown flag '-v': flags stand behind the command"),
        (["trian"], "unknown command 'trian': did you mean train?"),
        (["quux", "--lr", "3"], "unknown command 'quux': choose one of train, evaluate, "),
        ([""], "unknown command '': choose one of train, evaluate, "),
        (["sweep", "smoke", "--stage", "2"], "unknown flag '--stage': it is now called --rounds"),
        (["sweep", "smoke", "--stage=2"], "unknown flag '--stage': it is now called --rounds"),
        (["sweep", "--stage", "2", "smoke"], "unknown flag '--stage': it is now called --rounds"),
    ],
)
def test_what_is_not_known_is_answered_in_a_sentence(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in mistake(capsys, *arguments)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"orpo-dist {orpo_dist.__version__}\n"


def test_every_command_has_light_flags_and_a_command() -> None:
    for name, command in cli.COMMANDS.items():
        for place in (command.flags, command.run):
            assert callable(cli._function(place)), name
        if name != "slurm":
            assert command.flags.partition(":")[0].endswith(".flags"), name


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "train a model" in capsys.readouterr().out


def test_ctrl_c_has_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("orpo_dist.runs.command.run_report", interrupt)
    assert cli.main(["report", "."]) == 130
    assert capsys.readouterr().err == "orpo-dist: interrupted\n"


def test_the_process_exits_with_the_code_and_one_line(tmp_path: Path, tiny_model_dir: Path) -> None:
    beta = run("train", "--beta", "0.1")
    assert beta.returncode == 2 and beta.stdout == ""
    assert "--orpo-alpha" in only_line(beta.stderr)
    absent = tmp_path / "absent.jsonl"
    flags = ["--model", str(tiny_model_dir), "--project-name", str(tmp_path / "run")]
    data = run("train", *flags, "--data-path", str(absent))
    assert data.returncode == 2 and data.stdout == ""
    assert only_line(data.stderr) == f"data file {absent}: does not exist"
