"""Every mistake in a config is answered with one sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import orpo_dist as od
from orpo_dist.base.types import UserError
from orpo_dist.cli import main
from orpo_dist.config import ORPOConfig, build_config, load_config
from orpo_dist.config.names import ALIASES, explain_unknown
from orpo_dist.config.schema import OWNED_TRAINER_ARGS, leaves
from orpo_dist.sweeps.searched.files import load_sweep
from orpo_dist.training.arguments import resolve


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
        ({"lora_dtype": "bfloat16"}, ["lora_dtype bfloat16", "--peft"]),
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lr": -1, "epochz": 3, "batchsize": 2, "use_dora": True},
            "lr: input should be greater than 0 (got -1); unknown setting 'epochz': did you mean "
            "epochs?; unknown setting 'batchsize': did you mean batch_size?; "
            "use_dora needs peft (--peft)",
        ),
        (
            {"merge_adapter": True, "eval_strategy": "steps"},
            "merge_adapter needs peft (--peft); eval_strategy steps needs eval_steps",
        ),
        (  # nothing is said against settings whose value is not known
            {"use_peft": True, "use_dora": True},
            "unknown setting 'use_peft': here it is called peft",
        ),
        ({"peft": "maybe", "use_dora": True}, "peft: input should be a valid boolean, unable to "
         "interpret input (got 'maybe')"),
        (
            {"lr": 0, "stages": [{"lr": -2, "epoch": 1}, {}, {"model": "m", "seed": -1}]},
            "lr: input should be greater than 0 (got 0); stage 1: lr: input should be greater than "
            "0 (got -2); unknown setting 'epoch': did you mean epochs?; stage 3: model is one for "
            "the whole run; seed: input should be greater than or equal to 0 (got -1)",
        ),
        (
            {"use_dora": True, "stages": [{"eval_strategy": "steps"}]},
            "use_dora needs peft (--peft); stage 1: eval_strategy steps needs eval_steps",
        ),
        (
            {"trainer_args": {"lr": 1, "seed": 2}},
            "trainer_args: 'lr' is set by lr, not under trainer_args; 'seed' is set by seed, not "
            "under trainer_args (got {'lr': 1, 'seed': 2})",
        ),
    ],
)  # fmt: skip
def test_everything_that_is_wrong_is_told_at_once(values: dict[str, Any], message: str) -> None:
    assert complaint(**values) == message
    for make in (ORPOConfig, ORPOConfig().replace):
        with pytest.raises(UserError) as caught:
            make(**values)
        assert str(caught.value) == message
    with pytest.raises(UserError) as caught:
        ORPOConfig.model_validate(values)
    assert str(caught.value) == message


def test_mistakes_of_a_file_and_of_flags_beside_it_are_told_at_once(
    write_yaml: Callable[[str], Path],
) -> None:
    path = write_yaml("epochz: 3\nlr: -1\n")
    with pytest.raises(UserError) as caught:
        load_config(path, {"seed": -1})
    assert str(caught.value) == (
        f"config {path}: lr: input should be greater than 0 (got -1); unknown setting 'epochz': "
        "did you mean epochs?; seed: input should be greater than or equal to 0 (got -1)"
    )


def test_unknown_flags_are_told_at_once_with_bad_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = "launch zer2 -- train --epochz 3 --lr -1 --use-dora --max-promt-length=9"
    assert main(line.split()) == 2
    assert capsys.readouterr().err == (
        "orpo-dist: error: unknown preset 'zer2': did you mean zero2?; unknown flag '--epochz': "
        "did you mean --epochs?; unknown flag '--max-promt-length': did you mean "
        "--max-prompt-length?; lr: input should be greater than 0 (got '-1'); use_dora needs peft "
        "(--peft)\n"
    )


def test_flags_over_settings_of_a_sweep_are_not_weighed_against_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["sweep", "x.yaml", "--use-dora", "--lrr", "1"]) == 2
    assert capsys.readouterr().err == (
        "orpo-dist: error: unknown flag '--lrr': did you mean --lr?\n"
    )


def test_a_sweep_tells_all_its_mistakes_at_once() -> None:
    content = {
        "base": {"lrr": 1, "seed": -1},
        "space": {"lr": {"grid": [-1, 2]}, "epoch": {"choice": [1]}},
        "repeatz": 2,
        "num_samples": 0,
    }
    with pytest.raises(UserError) as caught:
        load_sweep(content)
    assert str(caught.value) == (
        "sweep: base: seed: input should be greater than or equal to 0 (got -1); unknown setting "
        "'lrr': did you mean lr?; unknown setting 'repeatz': did you mean repeats?; space.lr: lr: "
        "input should be greater than 0 (got -1); space.epoch: unknown setting 'epoch': did you "
        "mean epochs?; num_samples: input should be greater than or equal to 1 (got 0)"
    )
    with pytest.raises(UserError) as caught:
        load_sweep({
            "space": {"seed": {"grid": [1, 2]}}, "repeats": 2, "searcher": "bohb",
        })  # fmt: skip
    assert str(caught.value) == (
        "sweep: repeats and space.seed both set seeds: choose one; scheduler bohb and searcher "
        "bohb belong together: set both; searcher bohb proposes points and walks no grid: use "
        "choice"
    )


def test_choices_of_transformers_are_told_at_once() -> None:
    config = ORPOConfig(scheduler="cos", optimizer="adam", trainer_args={"adam_b": 1, "x_y": 2})
    with pytest.raises(UserError) as caught:
        resolve(config, has_eval=False)
    for part in ("scheduler 'cos'", "optimizer 'adam'", "setting 'adam_b'", "setting 'x_y'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "use",
    [
        od.train,
        lambda settings: od.load("nowhere", settings),
        lambda settings: od.ORPOTrainer(args=settings),
        lambda settings: od.evaluate_model("nowhere", "data.jsonl", settings),
    ],
)
def test_a_mapping_is_no_config(use: Callable[[Any], Any]) -> None:
    with pytest.raises(UserError, match="must be an ORPOConfig, not dict"):
        use({"lr": 1e-4})
