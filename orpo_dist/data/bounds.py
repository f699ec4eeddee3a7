"""What a model and its tokenizer take: an end to every answer, known ids, so many tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orpo_dist.base.types import UserError

if TYPE_CHECKING:
    from orpo_dist.data.encode import Encoder
    from orpo_dist.data.pairs import PairDataset

logger = logging.getLogger("orpo_dist")

CONTEXT = ("max_position_embeddings", "max_seq_len", "max_target_positions")  # as configs call it
# Their first position stands after the padding token's, which takes rows of the table.
AFTER_PADDING = (
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
)  # fmt: skip
UNSET = 10**6  # what tokenizers say of their longest text where nobody knows is larger


def context_of(model_config: Any) -> int | None:
    """Tokens that a model takes, by its config; None where that does not say."""
    text = model_config.get_text_config()
    found = (getattr(text, name, None) for name in CONTEXT)
    context = next((int(most) for most in found if most and most > 0), None)
    if context is not None and text.model_type in AFTER_PADDING:
        return context - (text.pad_token_id or 0) - 1
    return context


def rows_of(model_config: Any) -> int | None:
    """Rows of a model's embedding, by its config; None where that does not say."""
    return getattr(model_config.get_text_config(), "vocab_size", None)


def require_end(tokenizer: Any) -> None:
    """``UserError`` for a tokenizer that cannot end an answer."""
    end, named = tokenizer.eos_token_id, tokenizer.eos_token
    if end is None and named is None:
        raise UserError(
            "the tokenizer has no end-of-text token, so answers could never end; set "
            "eos_token in its tokenizer_config.json"
        )
    unknown = end == tokenizer.unk_token_id and named != tokenizer.unk_token
    if end is None or unknown:
        raise UserError(
            f"the tokenizer's eos_token {str(named)!r} is not in its vocabulary, so answers could "
            "never end; set eos_token in its tokenizer_config.json to one that is"
        )


def check_ids(ids: Sequence[int] | np.ndarray, tokenizer: Any, rows: int | None, what: str) -> None:
    """``UserError`` where a token is none that the model has an embedding for.

    On a GPU such an id is an assertion in a kernel, after which the process can do nothing.
    ids: of any shape. rows: of the embedding; None: not known. what: holds the ids, in words.
    """
    if rows is None or not len(ids):
        return
    lowest, highest = int(np.min(ids)), int(np.max(ids))
    if lowest < 0:
        raise UserError(f"{what}: holds the token id {lowest}; ids count from 0")
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        more = max(len(tokenizer), highest + 1)
        ends = ", which ends answers," if highest == tokenizer.eos_token_id else ""
        raise UserError(
            f"{what}: token {token!r} (id {highest}){ends} is beyond the {rows} rows of the "
            "model's embedding: use the tokenizer that belongs to the model, or give the model "
            f"more rows and save it: model.resize_token_embeddings({more})"
        )


def check_pairs(pairs: PairDataset, encoder: Encoder, what: str) -> None:
    """``UserError`` where pairs hold tokens, or more of them, than the encoder's model takes."""
    limits, tokenizer = encoder.limits, encoder.tokenizer
    check_ids(pairs.tokens, tokenizer, limits.rows, what)
    longest, said = pairs.longest, getattr(tokenizer, "model_max_length", UNSET)
    if limits.context and longest > limits.context:
        raise UserError(
            f"{what}: a prompt and its answer take {longest} tokens, over the model's context of "
            f"{limits.context}; cut them, or give rows and set max_seq_length"
        )
    if said < min(longest, UNSET):
        logger.warning(
            "%s: has sequences of up to %d tokens, and the tokenizer's model_max_length is %d; "
            "where that is the model's true limit, set max_seq_length %d",
            what, longest, said, said,
        )  # fmt: skip
