"""Every mistake in a config is answered with one sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.config import ORPOConfig, build_config, load_config
from orpo_dist.config.names import ALIASES, explain_unknown
from orpo_dist.config.schema import OWNED_TRAINER_ARGS, leaves
from orpo_dist.types import UserError


def complaint(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        build_config(values)
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_foreign_names_are_answered_with_ours(alias: str) -> None:
    ours, _, detail = ALIASES[alias].partition(" ")
    assert ours in ORPOConfig.model_fields
    assert alias not in ORPOConfig.model_fields
    assert complaint(**{alias: 1}) == (
        f"unknown setting '{alias}': here it is called {ours}{' ' * bool(detail)}{detail}"
    )
    value = detail.strip("()")
    if value:
        assert value in leaves(ORPOConfig.model_fields[ours].annotation)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("orpo_alhpa", "orpo_alpha"),
        ("epoch", "epochs"),
        ("batchsize", "batch_size"),
        ("max-prompt-length", "max_prompt_length"),
        ("lora-rank_r", None),
    ],
)
def test_typos_are_answered_with_a_suggestion(typo: str, meant: str | None) -> None:
    message = complaint(**{typo: 1})
    assert f"unknown setting '{typo}'" in message
    if meant:
        assert message.endswith(f"did you mean {meant}?")


def test_a_name_like_nothing_is_sent_to_the_help() -> None:
    message = complaint(quux_zap=1)
    assert message == explain_unknown("quux_zap", ORPOConfig.model_fields)
    assert "'quux_zap'" in message and "train --help" in message and "trainer_args" in message


@pytest.mark.parametrize("text", ["1: 2\n", "no: 2\n", "null: 2\n"])
def test_keys_that_are_not_words_are_unknown_settings(
    text: str, write_yaml: Callable[[str], Path]
) -> None:
    with pytest.raises(UserError, match="unknown setting"):
        load_config(write_yaml(text))


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    "name", ["lr", "batch_size", "orpo_alpha", "max_steps", "model", "log", "data_path", "lora_r"]
)
def test_booleans_are_no_numbers_and_no_names(name: str, value: bool) -> None:
    assert complaint(**{name: value}) == f"{name}: expected a value, got {str(value).lower()}"


def test_booleans_in_lists_are_refused() -> None:
    assert "data_weights" in complaint(data_path=["a"], data_weights=[True])
    assert "data_path" in complaint(data_path=["a", True])


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"lr": 0}, ["lr", "greater than 0", "got 0"]),
        ({"lr": "fast"}, ["lr", "number", "got 'fast'"]),
        ({"lr": float("inf")}, ["lr", "finite"]),
        ({"lr": float("nan")}, ["lr"]),
        ({"lr": None}, ["lr", "None"]),
        ({"orpo_alpha": -0.1}, ["orpo_alpha", "got -0.1"]),
        ({"warmup_ratio": 1}, ["warmup_ratio", "less than 1"]),
        ({"batch_size": 2.5}, ["batch_size", "integer"]),
        ({"batch_size": 0}, ["batch_size", "greater than or equal to 1"]),
        ({"max_completion_length": 1}, ["max_completion_length"]),
        ({"trainer": "dpo"}, ["trainer", "'orpo'", "got 'dpo'"]),
        ({"loss_form": "both"}, ["loss_form", "'additive'", "'convex'"]),
        ({"peft": "maybe"}, ["peft", "boolean"]),
        ({"project_name": ""}, ["project_name"]),
        ({"trainer_args": 3}, ["trainer_args", "dictionary"]),
        ({"lr": 0, "seed": -1}, ["seed: ", "; lr: "]),
        ({"loss_form": "convex", "orpo_alpha": 1.5}, ["orpo_alpha is 1.5", "convex"]),
        ({"quantization": "int4"}, ["quantization int4", "--peft"]),
        ({"use_dora": True}, ["use_dora", "peft"]),
        ({"merge_adapter": True}, ["merge_adapter", "peft"]),
        ({"max_seq_length": 129}, ["max_prompt_length 128", "max_seq_length 129"]),
        ({"data_path": ["a"], "data_weights": [1, 2]}, ["2 numbers", "1 sources"]),
        ({"data_path": ["a"], "data_weights": [0]}, ["data_weights", "above 0"]),
        ({"eval_strategy": "steps"}, ["eval_steps"]),
        ({"save_strategy": "steps"}, ["save_steps"]),
    ],
)
def test_bad_values_and_contradictions(values: dict[str, Any], parts: list[str]) -> None:
    message = complaint(**values)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "tail"),
    [
        ("lr: 1\nepochs: [1\nseed: 2\n", ":3: is not YAML"),
        ("lr: 1\n\tseed: 2\n", ":2: is not YAML"),
        ("- lr\n- seed\n", ": must be a mapping of settings, not list"),
        ("just words\n", ": must be a mapping of settings, not str"),
        ("lr: 1\nbatchsize: 2\n", ": unknown setting 'batchsize'"),
        ("lr: -1\n", ": lr: "),
        ("project_name: 2024-13-45\n", ": holds a value that cannot be read"),
    ],
)
def test_a_bad_file_is_named(text: str, tail: str, write_yaml: Callable[[str], Path]) -> None:
    path = write_yaml(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"config {path}{tail}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"lr: \xff\n")
    for path, reason in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "directory"),
        (binary, "UTF-8"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            load_config(path)
        assert str(caught.value).startswith(f"config {path}: ")


def test_a_mistake_in_an_override_is_not_blamed_on_the_file(
    write_yaml: Callable[[str], Path],
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write_yaml("lr: 1\n"), {"seed": -1})
    assert str(caught.value).startswith("seed: ")


@pytest.mark.parametrize("name", [*sorted(OWNED_TRAINER_ARGS), *sorted(ALIASES), "lr", "epochs"])
def test_trainer_args_cannot_set_what_a_setting_sets(name: str) -> None:
    ours = ALIASES.get(name) or OWNED_TRAINER_ARGS.get(name) or name
    message = complaint(trainer_args={"adam_beta2": 0.9, name: 1})
    assert message.startswith(f"trainer_args: '{name}' is set by {ours}, not under trainer_args")
