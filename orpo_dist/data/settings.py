"""What a config says about data: length limits, column names, and rows given in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orpo_dist.config import ORPOConfig
from orpo_dist.data.encode import Encoder, Limits
from orpo_dist.data.pairs import PairDataset
from orpo_dist.data.prepare import build
from orpo_dist.data.rows import Columns
from orpo_dist.data.sources import Source
from orpo_dist.types import UserError


def limits_of(config: ORPOConfig, model_config: Any) -> Limits:
    """The length limits of a run; without ``max_seq_length`` the model's context is the limit."""
    text_config = model_config.get_text_config()
    context = getattr(text_config, "max_position_embeddings", None)
    if config.max_seq_length and context and config.max_seq_length > context:
        raise UserError(
            f"max_seq_length {config.max_seq_length} is over the model's context of {context} "
            "tokens"
        )
    return Limits(
        prompt=config.max_prompt_length,
        completion=config.max_completion_length,
        sequence=config.max_seq_length or context,
        skip_overlong=config.overlong == "skip",
    )


def columns_of(config: ORPOConfig, training: bool = False) -> Columns:
    """The column names of a run; only training data need a difficulty."""
    return Columns(
        config.prompt_text_column,
        config.text_column,
        config.rejected_text_column,
        config.category_column,
        config.difficulty_column if training and config.curriculum == "difficulty" else None,
        config.system_column,
        config.tools_column,
        config.data_format,
        config.implicit_prompt,
    )


def held_out_paths(config: ORPOConfig) -> tuple[list[str], str]:
    """Where a run's evaluation data come from: ``(paths, split)``; no paths if there are none."""
    if config.valid_data_path:
        return config.valid_data_path, config.valid_split or config.train_split
    if not config.valid_split:
        return [], ""
    for path in config.data_path:
        if Path(path).is_file():
            raise UserError(
                f"valid_split {config.valid_split}: {path} is a single file and has no splits; "
                "set valid_data_path"
            )
    return config.data_path, config.valid_split


def make_encoder(tokenizer: Any, config: ORPOConfig, limits: Limits | None = None) -> Encoder:
    """What turns the rows of a config into tokens."""
    return Encoder(tokenizer, config.chat_template, limits or Limits(), config.chat_template_kwargs)


def keep_used_template(encoder: Encoder, *data: PairDataset | None) -> None:
    """Save the built-in template with the tokenizer only where it rendered something."""
    if any(pairs is not None and pairs.report.get("forms", {}).get("messages") for pairs in data):
        encoder.keep_template()


def as_pairs(rows: Any, encoder: Encoder, config: ORPOConfig, training: bool = False) -> Any:
    """Rows in memory as pairs; a ``PairDataset`` and None pass through."""
    if rows is None or isinstance(rows, PairDataset):
        return rows
    named = ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    source = Source("dataset", named, [])
    return build([source], encoder, columns_of(config, training), strict=config.strict_data)
