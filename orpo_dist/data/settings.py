"""What a config says about data: length limits, column names, and rows given in memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError, refuse
from orpo_dist.config import ORPOConfig
from orpo_dist.data.bounds import check_pairs, context_of, rows_of
from orpo_dist.data.encode import Encoder, Limits
from orpo_dist.data.pairs import PairDataset
from orpo_dist.data.prepare import build
from orpo_dist.data.report import sentences
from orpo_dist.data.rows import Columns
from orpo_dist.data.sources import Source

logger = logging.getLogger("orpo_dist")


def limits_of(config: ORPOConfig, model_config: Any, rows: int | None = None) -> Limits:
    """The length limits of a run; without ``max_seq_length`` the model's context is the limit.

    rows: of the model's embedding, where the model is at hand; default: what its config says.
    """
    context = context_of(model_config)
    if context is not None:
        _within(config, context)
    return Limits(
        prompt=config.max_prompt_length,
        completion=config.max_completion_length,
        sequence=config.max_seq_length or context,
        skip_overlong=config.overlong == "skip",
        context=context,
        rows=rows_of(model_config) if rows is None else rows,
    )


def _within(config: ORPOConfig, context: int) -> None:
    """``UserError`` for limits that the model's context makes void."""
    found = [
        f"{name} {limit} is over the model's context of {context} tokens"
        for name in ("max_completion_length", "max_seq_length")
        if (limit := getattr(config, name)) is not None and limit > context
    ]
    default = ORPOConfig.model_fields["max_prompt_length"].default  # which nobody asked for
    if config.max_prompt_length not in (None, default) and config.max_prompt_length > context - 2:
        found.append(
            f"max_prompt_length {config.max_prompt_length} leaves no room for an answer within "
            f"the model's context of {context} tokens"
        )
    refuse(found)


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
    """Rows in memory as pairs; a ``PairDataset`` and None pass through.

    Says what was skipped and cut; ``UserError`` for what the model cannot take.
    """
    if rows is None:
        return None
    name = "train_dataset" if training else "eval_dataset"
    if isinstance(rows, PairDataset):
        check_pairs(rows, encoder, name)
        return rows
    named = ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    source = Source("dataset", named, [])
    pairs = build([source], encoder, columns_of(config, training), strict=config.strict_data)
    check_pairs(pairs, encoder, name)
    for loud, sentence in sentences(pairs.report):
        logger.log(logging.WARNING if loud else logging.INFO, "%s: %s", name, sentence)
    return pairs
