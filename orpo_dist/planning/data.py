"""What is known of the data: from the files of a run, or stated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from orpo_dist.base.types import UserError
from orpo_dist.batching.steps import StepPlan, Work, nll_token_counts, repeats_of
from orpo_dist.config import ORPOConfig
from orpo_dist.data import columns_of, limits_of, make_encoder, prepare
from orpo_dist.models.model import load_tokenizer
from orpo_dist.planning.trace import Lengths

LONG = 2048  # tokens of a sequence where nothing limits it but a larger context


@dataclass(frozen=True)
class Data:
    """lengths: (N, 3) of the pairs, or of one typical one. longest: of the largest pair.

    pairs: in an epoch; None if not known. source: in words.
    """

    lengths: np.ndarray
    longest: Lengths
    pairs: int | None
    source: str

    def work(self, config: ORPOConfig, global_batch: int) -> Work:
        """Of an average step."""
        plan = StepPlan(
            self.lengths,
            nll_token_counts(self.lengths, config.nll_scope),
            global_batch=len(self.lengths),
            micro_batch=len(self.lengths),
            padded=config.attention == "padded",
        )
        return next(plan.in_order()).work * (global_batch / len(self.lengths))

    def steps(self, config: ORPOConfig, global_batch: int) -> int | None:
        if config.max_steps:
            return config.max_steps
        if self.pairs is None:
            return None
        return math.ceil(config.epochs * math.ceil(self.pairs / global_batch))


def stated(config: ORPOConfig, hf_config: Any, typical: Lengths | None, pairs: int | None) -> Data:
    """Without files: the typical pair as stated, the longest one that the limits let through."""
    prompt, chosen, rejected = longest_allowed(config, hf_config)
    if typical is not None:  # without limits the context may be shorter than what is stated
        prompt, chosen, rejected = (
            max(prompt, typical[0]), max(chosen, typical[1]), max(rejected, typical[2]),
        )  # fmt: skip
    longest = (prompt, chosen, rejected)
    source = "stated" if typical else "no data: every pair as long as the limits let it be"
    return Data(np.asarray([typical or longest]), longest, pairs, source)


def longest_allowed(config: ORPOConfig, hf_config: Any) -> Lengths:
    """The largest pair under the limits of a run, at most ``LONG`` tokens a sequence unless set."""
    limits = limits_of(config, hf_config)
    sequence = config.max_seq_length or min(limits.sequence or LONG, LONG)
    prompt = min(config.max_prompt_length or sequence // 2, sequence - 2)
    answer = min(config.max_completion_length or sequence - prompt, sequence - prompt)
    return prompt, answer, answer


def read(config: ORPOConfig, hf_config: Any) -> Data:
    """The pairs of ``data_path``, tokenised and truncated as in training."""
    if config.model is None:
        raise UserError("model is missing: data cannot be counted in tokens without its tokenizer")
    tokenizer = load_tokenizer(config.model, config)
    encoder = make_encoder(tokenizer, config, limits_of(config, hf_config))
    columns = columns_of(config, training=True)
    dataset = prepare(config.data_path, encoder, columns, config.train_split, config.strict_data)
    lengths = np.asarray(dataset.lengths)
    longest = lengths[lengths.sum(1).argmax()]
    repeats = repeats_of(dataset.source_ids, config.data_weights)
    pairs = len(lengths) if repeats is None else max(1, round(float(repeats.sum())))
    prompt, chosen, rejected = (int(n) for n in longest)
    return Data(lengths, (prompt, chosen, rejected), pairs, ", ".join(config.data_path))
