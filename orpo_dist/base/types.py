"""The nouns of the toolkit: plain dataclasses, importable without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class UserError(ValueError):
    """A mistake in what the user gave us: one sentence that says what, where and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


@contextlib.contextmanager
def noted(found: list[str]) -> Iterator[None]:
    """Puts the sentence of a ``UserError`` into ``found``, so that several are told at once."""
    try:
        yield
    except UserError as error:
        found.append(str(error))


def refuse(found: list[str], where: str = "") -> None:
    """One ``UserError`` of all sentences in ``found``, if there are any. where: begins it."""
    if found:
        raise UserError((f"{where}: " if where else "") + "; ".join(found))


class TemporaryFailure(RuntimeError):
    """The network or a server failed: one sentence; nobody's mistake, and trying again may help.

    The command line prints it without a traceback and exits with code 75.
    """


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference, tokenised and truncated: a prompt and its two answers.

    Token ids only. Each answer ends with its end-of-answer token exactly once; the prompt holds
    every special token that precedes an answer. ``category`` groups pairs in evaluations.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    category: str = ""


@dataclass(frozen=True, slots=True)
class PairScores:
    """What the model says about B pairs; the only thing the objective sees. Tensors of shape (B,).

    chosen_logp, rejected_logp: mean log-probability per answer token (nats), end token included.
    nll_sum: summed negative log-likelihood over the tokens of ``nll_scope`` (nats).
    nll_tokens: how many tokens ``nll_sum`` covers.
    weight: 1 for a real pair, 0 for filler that keeps ranks in step; multiplies every sum.
    balance: load-balancing loss of the experts, where it is asked for (``routing``).
    """

    chosen_logp: Tensor
    rejected_logp: Tensor
    nll_sum: Tensor
    nll_tokens: Tensor
    weight: Tensor
    balance: Tensor | None = None


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Detached sums over the pairs of one forward pass; every field is a 0-d tensor.

    ``nll`` and ``nll_tokens`` are sums over tokens, everything else sums over pairs. Adding the
    metrics of micro-batches, steps or ranks field by field is exact.
    """

    pairs: Tensor
    nll_tokens: Tensor
    nll: Tensor
    odds_loss: Tensor
    log_odds: Tensor
    chosen_logp: Tensor
    rejected_logp: Tensor
    correct: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return (getattr(self, field.name) for field in fields(self))
