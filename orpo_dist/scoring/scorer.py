"""Scores of pairs from a model: packed where the model can, padded everywhere else."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from orpo_dist.base.reasons import reason_of
from orpo_dist.base.types import Pair, PairScores, UserError
from orpo_dist.engines.mesh import WHOLE, SequenceGroup
from orpo_dist.scoring import proof
from orpo_dist.scoring.finish import Finish
from orpo_dist.scoring.flash import use, use_newest
from orpo_dist.scoring.hardware import HERE, Hardware
from orpo_dist.scoring.masks import Unpackable
from orpo_dist.scoring.miniature import in_fp32, is_small, miniature
from orpo_dist.scoring.packed_forward import (
    causal_model,
    forget_packing,
    needs_rows,
    teach_packing,
    why_not_packed,
)
from orpo_dist.scoring.packing import PackedBatch, gather_scores, pack_pairs
from orpo_dist.scoring.padding import PaddedBatch, pad_pairs, padded_scores
from orpo_dist.scoring.ragged import FlatPairs
from orpo_dist.scoring.ropes import teach_ropes
from orpo_dist.scoring.routing import wants_balance
from orpo_dist.scoring.switches import Switch, stand_apart, switches
from orpo_dist.upstream.hf_models import attention_of

logger = logging.getLogger("orpo_dist")

Batch = PackedBatch | PaddedBatch

# How torch says that an operation met two precisions.
MIXED_UP = re.compile(
    r"same (scalar type|dtype)|dtypes match|scalar type \w+ but found|have different dtype"
)


@dataclass(frozen=True)
class Scorer:
    """One way of scoring, fixed for a model.

    packed: the fast path; else padded. varlen: the fast path through the variable-length kernel.
    rows: packed, but some layers need every answer as a row of its own. switches: lengths at which
    the model's ropes change. top_k: experts a token, where the balance of experts is asked for
    (``routing``). hardware: what computes the packed batches. sequence: who shares their tokens.
    flash: which flash attention is behind torch's kernel; None: its own.
    """

    packed: bool
    nll_scope: str = "completion"
    pad_id: int = 0
    varlen: bool = False
    rows: bool = False
    switches: tuple[Switch, ...] = ()
    top_k: int | None = None
    hardware: Hardware = HERE
    sequence: SequenceGroup = WHOLE
    flash: str | None = None

    @property
    def padded(self) -> bool:
        """Whether some layers at least get padding, so that micro-batches are cut for it."""
        return self.rows or not self.packed

    def collate(
        self, pairs: Sequence[Pair] | FlatPairs, real: bool = True, pinned: bool = False
    ) -> Batch:
        """Pairs -> the batch that ``score`` takes. real: False makes filler of weight 0.

        All ranks of a sequence collate the same pairs; each gets its part of their tokens. pinned:
        in memory that a GPU copies by itself.
        """
        if self.packed:
            return pack_pairs(
                pairs, self.nll_scope, real, self.varlen, self.rows, self.switches,
                self.top_k is not None, self.hardware, (self.sequence.rank, self.sequence.size),
                pinned,
            )  # fmt: skip
        return pad_pairs(pairs, self.nll_scope, self.pad_id, real, self.switches, pinned)

    def repeated(self, lengths: np.ndarray) -> np.ndarray | None:
        """Tokens, (N,), that stand twice in packed batches of pairs of these lengths, (N, 3)."""
        if not self.switches or self.padded:
            return None
        return lengths[:, 0] * stand_apart(self.switches, lengths)

    def score(self, model: Any, batch: Batch) -> PairScores:
        """Scores of a collated batch; ``model`` may be wrapped by an engine.

        Raises ``UserError`` for a model that mixes up two precisions under autocast.
        """
        try:
            if isinstance(batch, PaddedBatch):
                return padded_scores(model, batch, self.top_k)
            # Not from collate: a group of processes cannot come from a loader's worker.
            batch = replace(batch, sequence=self.sequence)
            found = model(input_ids=batch.input_ids, orpo_batch=batch)
        except RuntimeError as error:
            if not MIXED_UP.search(str(error)):
                raise
            core = causal_model(getattr(model, "module", model))
            raise UserError(
                f"model {type(core).__name__}: does not run in mixed precision "
                f"({reason_of(error)}); set mixed_precision none"
            ) from error
        return gather_scores(batch, *(found if isinstance(found, tuple) else (found,)))


def make_scorer(
    model: Any,
    attention: str,
    nll_scope: str = "completion",
    pad_id: int = 0,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Scorer:
    """The scorer for a model: ``attention`` is packed, padded or auto.

    auto takes the packed path if the model's architecture proves, in fp32, that every answer scores
    as it would alone; some accept packed input and are silently wrong. Where it cannot, a warning
    says what the padded path costs. device: where the model will run, if that is not where its
    weights are; dtype: in which precision, if that is not theirs.
    Raises ``UserError`` if packed is asked for and the model cannot, and for a model that neither
    path scores as it would score one answer alone.
    """
    core = causal_model(model)
    teach_ropes(core)
    changes = switches(core.config)
    padded = Scorer(False, nll_scope, pad_id, switches=changes)
    if attention == "padded":
        _refuse_unless_padded(core)
        return padded
    with proof.undisturbed():
        reason = why_not_packed(core) or _unproved(model)
    if reason is None:
        varlen, flash = _takes_varlen(core, device)
        _prove_head(core, device, dtype)
        return Scorer(True, nll_scope, pad_id, varlen, needs_rows(core), changes, flash=flash)
    if attention == "packed":
        raise UserError(f"attention packed: {type(core).__name__} {reason}; use auto or padded")
    _refuse_unless_padded(core)
    logger.warning(
        "attention: padded, because %s %s; every prompt is computed twice and sequences are "
        "padded, which takes 2 to 5 times as long as packed",
        type(core).__name__,
        reason,
    )
    return padded


def _refuse_unless_padded(core: Any) -> None:
    """``UserError`` for a model whose answers score otherwise beside longer ones."""
    with proof.undisturbed():
        try:
            small = miniature(core)
            reason = proof.padding_fails(small, _padded)
        except Exception as error:  # built or run in a way that a miniature cannot follow
            logger.info(
                "the padded path of %s is not proved (%s)", type(core).__name__, reason_of(error)
            )
            return
    if reason is not None:
        raise UserError(
            f"model {type(core).__name__}: {reason}: it does not honour the attention mask of "
            "padding, so its scores would depend on what else is in a batch; it can be neither "
            "trained nor scored here"
        )


def _padded(model: Any, pairs: Sequence[Pair]) -> PairScores:
    scorer = Scorer(False, "prompt_and_completion", switches=switches(causal_model(model).config))
    return scorer.score(model, scorer.collate(pairs).to(model.device))


def adopt_scorer(model: Any, scorer: Scorer) -> Scorer:
    """The scorer that another rank has proved, for a model that may not hold its weights here."""
    teach_ropes(causal_model(model))
    if scorer.packed:
        teach_packing(causal_model(model))
    if scorer.flash is not None and not use(scorer.flash):
        logger.warning(
            "attention: %s, as on rank 0, is not to be had here; torch's own in its place",
            scorer.flash,
        )
    return scorer


def balancing(scorer: Scorer, core: Any, coefficient: float | None) -> Scorer:
    """The scorer, which also asks for the balance of experts where that is trained.

    Raises ``UserError`` where it is asked for and the model has none.
    """
    if not wants_balance(core, coefficient):
        return scorer
    return replace(scorer, top_k=core.num_experts_per_tok)


def _takes_varlen(core: Any, device: torch.device | None) -> tuple[bool, str | None]:
    """Whether the kernel is right here, and which flash attention is behind it."""
    device = device or core.get_output_embeddings().weight.device
    if device.type != "cuda":
        return False, None
    reason = kernel_differs(core, device)
    if reason is not None:
        logger.warning(
            "attention: packed, but pair by pair and slower, because the varlen kernel %s", reason
        )
        return False, None
    return True, use_newest(lambda: kernel_differs(core, device))


def _prove_head(core: Any, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Let it be said at start, and not in the first step, how the head will be computed."""
    weight, config = core.get_output_embeddings().weight, core.config.get_text_config()
    device = device or weight.device
    if device.type == "cuda":
        device = torch.device(
            "cuda", torch.cuda.current_device() if device.index is None else device.index
        )
        HERE.fuses_head(device, dtype or weight.dtype, config.vocab_size, Finish.of(config))


def kernel_differs(core: Any, device: torch.device) -> str | None:
    """Why the variable-length kernel is not to be trusted with this model; None if it is right.

    The model's own attention runs on the device, forward and backward, on a miniature with the real
    head sizes and with windows that bite.
    """
    try:
        with proof.undisturbed():
            small = miniature(core).to(device)
            assert teach_packing(small) is None
            return proof.kernel_fails(small, _prompts_too(), _prompts_too(varlen=True))
    except Exception as error:  # a device or head size that the kernel was not built for
        return _first_line(f"does not run here ({type(error).__name__}: {error})")


def kernel_score(small: Any) -> proof.Score:
    """How a miniature is scored where a kernel is proved: packed where it can be, else padded."""
    teach_ropes(small)
    return _padded if why_not_packed(small) or teach_packing(small) else _prompts_too()


def _prompts_too(varlen: bool = False) -> proof.Score:
    """Packed scores of pairs, under the scope that counts every token there is."""

    def score(model: Any, pairs: Sequence[Pair]) -> PairScores:
        scorer = _packing_scorer(model, "prompt_and_completion", varlen)
        return scorer.score(model, scorer.collate(pairs).to(model.device))

    return score


def _packing_scorer(core: Any, nll_scope: str = "completion", varlen: bool = False) -> Scorer:
    rows, changes = needs_rows(core), switches(core.config)
    return Scorer(True, nll_scope, varlen=varlen, rows=rows, switches=changes)


def _unproved(model: Any) -> str | None:
    """Why a model does not score packed answers as it scores each alone; None if it is taught."""
    core = causal_model(model)
    try:
        small = miniature(core)
    except Exception as error:
        return _first_line(f"cannot be rebuilt small for a proof ({type(error).__name__}: {error})")
    former = attention_of(core.config)
    try:
        reason = proof.fails(small, teach_packing, _prompts_too())
        changed = proof.changed(core, small)  # and so not what its config says
        if reason is None and changed and is_small(core):
            reason = proof.fails(in_fp32(core), teach_packing, _prompts_too())
        reason = reason or teach_packing(core)
        if reason is None and changed and not is_small(core):
            reason = proof.model_fails(model, Scorer(True, rows=needs_rows(core)), Scorer(False))
    except Unpackable as error:
        reason = str(error)
    except Exception as error:  # whatever an unknown architecture makes of packed input
        reason = _first_line(f"does not run packed ({type(error).__name__}: {error})")
    if reason is not None and "forward" in vars(core):
        forget_packing(core, former)
    return reason


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
