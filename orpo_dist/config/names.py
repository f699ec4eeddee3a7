"""What other tools call our settings, so that a wrong name is answered with the right one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

# Spellings of TRL, transformers, AutoTrain, Axolotl and LLaMA-Factory -> ours. A value may say more
# than a name where the setting works differently here.
ALIASES = {
    "alpha": "orpo_alpha",
    "beta": "orpo_alpha",
    "lambda": "orpo_alpha",
    "rl_beta": "orpo_alpha",
    "pref_beta": "orpo_alpha",
    "dpo_beta": "orpo_alpha",
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "total_train_batch_size": "global_batch_size",
    "lr_scheduler": "scheduler",
    "lr_scheduler_type": "scheduler",
    "optim": "optimizer",
    "warmup_steps": "warmup_ratio",
    "clip_grad": "max_grad_norm",
    "max_length": "max_seq_length",
    "block_size": "max_seq_length",
    "model_max_length": "max_seq_length",
    "sequence_len": "max_seq_length",
    "cutoff_len": "max_seq_length",
    "max_answer_length": "max_completion_length",
    "max_target_length": "max_completion_length",
    "model_name_or_path": "model",
    "model_name": "model",
    "base_model": "model",
    "output_dir": "project_name",
    "dataset": "data_path",
    "dataset_name": "data_path",
    "train_file": "data_path",
    "eval_dataset": "valid_data_path",
    "valid_path": "valid_data_path",
    "prompt_column": "prompt_text_column",
    "chosen_text_column": "text_column",
    "chosen_column": "text_column",
    "rejected_column": "rejected_text_column",
    "bf16": "mixed_precision (bf16)",
    "fp16": "mixed_precision (fp16)",
    "use_peft": "peft",
    "lora_target_modules": "target_modules",
    "lora_target": "target_modules",
    "use_lora": "peft",
    "load_in_4bit": "quantization (int4)",
    "load_in_8bit": "quantization (int8)",
    "report_to": "log",
    "activation_checkpointing": "gradient_checkpointing",
    "disable_gradient_checkpointing": "gradient_checkpointing",
    "evaluation_strategy": "eval_strategy",
    "resume": "resume_from_checkpoint",
    "early_stopping": "early_stopping_patience",
}


def explain_unknown(
    name: str, known: Iterable[str], kind: str = "setting", write: Callable[[str], str] = str
) -> str:
    """One sentence on a name that is not a setting, with the right one where it can be guessed.

    write: how names look where this is read, e.g. as flags.
    """
    unknown = f"unknown {kind} '{write(name)}'"
    if name in ALIASES:
        return f"{unknown}: here it is called {write(ALIASES[name])}"
    if guess := meant(name, known):
        return f"{unknown}: did you mean {write(guess)}?"
    return (
        f"{unknown}: see 'orpo-dist train --help' for the names; anything else that "
        "transformers' TrainingArguments takes goes under trainer_args"
    )


def meant(name: str, known: Iterable[str]) -> str:
    """The setting that a wrong name most likely means; empty where none is like it."""
    if name in ALIASES:
        return ALIASES[name].partition(" ")[0]
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return close[0] if close else ""


def sentence(problem: Any) -> str:
    """A problem that pydantic found, as one sentence."""
    name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return message
    got = "" if "got " in message else f" (got {problem['input']!r})"
    return f"{name}: {message[0].lower()}{message[1:]}{got}"
