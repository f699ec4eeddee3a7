"""The config: its defaults, precedence and round trips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig, build_config, dump_config, load_config, read_yaml

DOCUMENTED = {
    "model": None,
    "model_revision": None,
    "trainer": "orpo",
    "project_name": "orpo-run",
    "overwrite": False,
    "resume_from_checkpoint": "never",
    "seed": 42,
    "trust_remote_code": False,
    "data_path": [],
    "valid_data_path": [],
    "data_weights": None,
    "data_temperature": None,
    "train_split": "train",
    "valid_split": None,
    "prompt_text_column": "prompt",
    "text_column": "chosen",
    "rejected_text_column": "rejected",
    "system_column": None,
    "tools_column": "tools",
    "data_format": "auto",
    "implicit_prompt": False,
    "category_column": "category",
    "strict_data": False,
    "chat_template": None,
    "chat_template_kwargs": {},
    "max_prompt_length": 128,
    "max_completion_length": None,
    "max_seq_length": None,
    "overlong": "truncate",
    "curriculum": None,
    "difficulty_column": "difficulty",
    "curriculum_epochs": 1,
    "curriculum_pacing": "linear",
    "curriculum_start": 0.0,
    "orpo_alpha": 1.0,
    "orpo_alpha_schedule": "constant",
    "orpo_alpha_start": 0.0,
    "orpo_alpha_warmup": 0.1,
    "loss_form": "additive",
    "nll_scope": "completion",
    "router_aux_loss_coef": None,
    "epochs": 3,
    "max_steps": None,
    "batch_size": 4,
    "gradient_accumulation": 4,
    "global_batch_size": None,
    "lr": 5e-5,
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "scheduler": "cosine",
    "optimizer": "adamw_torch",
    "max_grad_norm": 1.0,
    "max_bad_steps": 5,
    "stages": None,
    "mixed_precision": None,
    "attention": "auto",
    "max_tokens_per_microbatch": "auto",
    "sequence_parallel": 1,
    "kernels": "auto",
    "gradient_checkpointing": False,
    "activation_offload": False,
    "quantization": None,
    "peft": False,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "lora_dtype": "float32",
    "use_dora": False,
    "merge_adapter": False,
    "eval_strategy": None,
    "eval_steps": None,
    "save_strategy": None,
    "save_steps": None,
    "save_total_limit": 2,
    "logging_steps": None,
    "early_stopping_patience": None,
    "early_stopping_threshold": 0.0,
    "metric_for_best_model": None,
    "load_best_model_at_end": None,
    "hang_timeout": 540,
    "async_save": True,
    "log": "tensorboard",
    "trainer_args": {},
}


def test_defaults_are_the_documented_ones() -> None:
    assert ORPOConfig().model_dump() == DOCUMENTED


def test_every_field_has_help_and_a_group() -> None:
    for name, field in ORPOConfig.model_fields.items():
        assert field.description, name
        assert isinstance(field.json_schema_extra, dict) and field.json_schema_extra["group"], name


def test_defaults_lose_to_the_file_and_the_file_to_overrides(
    write_yaml: Callable[[str], Path],
) -> None:
    path = write_yaml("lr: 1.0e-5\nbatch_size: 2\n")
    config = load_config(path, {"batch_size": 8})
    assert (config.lr, config.batch_size, config.epochs) == (1e-5, 8, 3)
    assert load_config(path).batch_size == 2
    assert load_config(None, {"batch_size": 8}).batch_size == 8
    assert load_config() == ORPOConfig()


def test_dump_and_load_is_the_same_config(write_yaml: Callable[[str], Path]) -> None:
    config = ORPOConfig(
        model="models/köln",
        data_path=["a.jsonl", "b.jsonl"],
        data_weights=[1, 0.5],
        chat_template="{% for m in messages %}\n{{ m['content'] }}: 'x'\n{% endfor %}",
        eval_strategy="no",
        mixed_precision="none",
        peft=True,
        quantization="int4",
        lr=5e-6,
        project_name="2024",
        max_prompt_length=None,
        trainer_args={"adam_beta2": 0.95, "lr_scheduler_kwargs": {"a": None, "b": ["c"]}},
    )
    path = write_yaml(dump_config(config))
    assert load_config(path) == config
    assert load_config(write_yaml(dump_config(ORPOConfig()))) == ORPOConfig()


def test_exponents_without_a_dot_are_numbers(write_yaml: Callable[[str], Path]) -> None:
    config = load_config(write_yaml("lr: 5e-6\nepochs: 1e1\n"))
    assert (config.lr, config.epochs) == (5e-6, 10.0)


@pytest.mark.parametrize("word", ["no", "off", "No", "false", "'no'"])
def test_yaml_no_means_no(word: str, write_yaml: Callable[[str], Path]) -> None:
    if word != "'no'":
        assert read_yaml(write_yaml(f"eval_strategy: {word}\n")) == {"eval_strategy": False}
    config = load_config(write_yaml(f"eval_strategy: {word}\nsave_strategy: {word}\n"))
    assert (config.eval_strategy, config.save_strategy) == ("no", "no")


def test_yaml_no_means_none_where_that_is_the_word(write_yaml: Callable[[str], Path]) -> None:
    assert load_config(write_yaml("mixed_precision: no\n")).mixed_precision == "none"
    with pytest.raises(UserError, match="quantization"):
        load_config(write_yaml("quantization: no\n"))


def test_one_data_path_is_a_list_of_one(write_yaml: Callable[[str], Path]) -> None:
    assert load_config(write_yaml("data_path: a.jsonl\n")).data_path == ["a.jsonl"]
    assert load_config(write_yaml("valid_data_path:\n")).valid_data_path == []


def test_an_empty_file_is_the_defaults(write_yaml: Callable[[str], Path]) -> None:
    assert load_config(write_yaml("# nothing yet\n")) == ORPOConfig()


@pytest.mark.parametrize(
    "values",
    [
        {"loss_form": "convex", "orpo_alpha": 1},
        {"quantization": "int4", "peft": True},
        {"use_dora": True, "merge_adapter": True, "peft": True},
        {"max_seq_length": 130},
        {"max_prompt_length": None, "max_seq_length": 4},
        {"eval_strategy": "steps", "eval_steps": 5},
        {"save_strategy": "steps", "load_best_model_at_end": True},
        {"orpo_alpha": 0},
    ],
)
def test_settings_at_the_edge_are_accepted(values: dict[str, Any]) -> None:
    config = build_config(values)
    assert {name: getattr(config, name) for name in values} == values


def test_trainer_args_take_the_rest() -> None:
    args = {"adam_beta2": 0.9, "dataloader_num_workers": 2, "torch_compile": True}
    assert ORPOConfig(trainer_args=args).trainer_args == args


def test_configs_are_frozen_and_replaced_with_checks() -> None:
    config = ORPOConfig(lr=1e-4)
    with pytest.raises(UserError, match=r"frozen: .*replace\(lr="):
        config.lr = 1.0
    changed = config.replace(batch_size=2)
    assert (changed.lr, changed.batch_size, config.batch_size) == (1e-4, 2, 4)
    with pytest.raises(ValueError, match="peft"):
        config.replace(quantization="int8")


def test_derived_properties() -> None:
    assert ORPOConfig(batch_size=3, gradient_accumulation=5).pairs_per_rank_step == 15
    assert not ORPOConfig().keeps_best
    assert ORPOConfig(early_stopping_patience=2).keeps_best
    assert not ORPOConfig(early_stopping_patience=2, load_best_model_at_end=False).keeps_best


@pytest.mark.parametrize(
    ("text", "value"), [("auto", "auto"), ("none", None), ("null", None), ("4096", 4096)]
)
def test_a_token_budget_is_a_number_auto_or_none(
    write_yaml: Callable[[str], Path], text: str, value: int | str | None
) -> None:
    path = write_yaml(f"max_tokens_per_microbatch: {text}\n")
    assert load_config(path).max_tokens_per_microbatch == value
    assert load_config(write_yaml(dump_config(load_config(path)))) == load_config(path)


@pytest.mark.parametrize("value", ["0", "-5", "many", "1.5", "true"])
def test_any_other_token_budget_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="max_tokens_per_microbatch"):
        load_config(None, {"max_tokens_per_microbatch": value})
