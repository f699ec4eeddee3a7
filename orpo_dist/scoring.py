"""Scores of pairs from a model: packed where the model can, padded everywhere else.

The packed path runs *inside* the model's forward, so that every engine's hooks apply, and projects
only predicted positions, in chunks: the logits of a whole batch never exist.
"""

from __future__ import annotations

import functools
import inspect
import logging
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from orpo_dist.attention import no_masks, use_packed_attention, varlen_differs
from orpo_dist.config import ORPOConfig
from orpo_dist.packing import PackedBatch, gather_scores, pack_pairs
from orpo_dist.padding import PaddedBatch, pad_pairs, padded_scores
from orpo_dist.ragged import FlatPairs
from orpo_dist.runtime import Runtime, gathered_while_used
from orpo_dist.types import Pair, PairScores, UserError

logger = logging.getLogger("orpo_dist")

Batch = PackedBatch | PaddedBatch

LOGITS_BYTES = 2**28  # fp32 logits that may exist at once: 256 MiB
BLOCK_BYTES = 2**22  # logits that a CPU turns into log-probs at a time: 4 MiB
MIN_CHUNK = 128  # tokens; smaller chunks would leave the hardware idle


@dataclass(frozen=True)
class Scorer:
    """One way of scoring, fixed for a model.

    packed: the fast path; else padded. varlen: the fast path through the variable-length kernel.
    """

    packed: bool
    nll_scope: str = "completion"
    pad_id: int = 0
    varlen: bool = False

    def collate(self, pairs: Sequence[Pair] | FlatPairs, real: bool = True) -> Batch:
        """Pairs -> the batch that ``score`` takes. real: False makes filler of weight 0."""
        if self.packed:
            return pack_pairs(pairs, self.nll_scope, real, self.varlen)
        return pad_pairs(pairs, self.nll_scope, self.pad_id, real)

    def score(self, model: Any, batch: Batch) -> PairScores:
        """Scores of a collated batch; ``model`` may be wrapped by an engine."""
        if isinstance(batch, PaddedBatch):
            return padded_scores(model, batch)
        return gather_scores(batch, model(input_ids=batch.input_ids, orpo_batch=batch))


def make_scorer(
    model: Any,
    attention: str,
    nll_scope: str = "completion",
    pad_id: int = 0,
    device: torch.device | None = None,
) -> Scorer:
    """The scorer for a model: ``attention`` is packed, padded or auto.

    auto takes the packed path if the model proves, on a pair of random tokens, that it scores the
    same packed and padded; some architectures accept packed input and are silently wrong.
    device: where the model will run, if that is not where its weights are.
    Raises ``UserError`` if packed is asked for and the model cannot.
    """
    padded = Scorer(False, nll_scope, pad_id)
    if attention == "padded":
        return padded
    core = causal_model(model)
    former = core.config._attn_implementation
    reason = why_not_packed(core) or _teach_packing(core)
    if reason is None:
        reason = _failed_proof(model, pad_id)
        if reason is None:
            return Scorer(True, nll_scope, pad_id, _takes_varlen(core, device))
        del core.forward  # the class's own again
        core.set_attn_implementation(former)
    if attention == "packed":
        raise UserError(f"attention packed: {type(core).__name__} {reason}; use auto or padded")
    logger.info("attention: padded, because %s %s", type(core).__name__, reason)
    return padded


def adopt_scorer(model: Any, scorer: Scorer) -> Scorer:
    """The scorer that another rank has proved, for a model that may not hold its weights here."""
    if scorer.packed:
        _teach_packing(causal_model(model))
    return scorer


def agreed_scorer(policy: Any, config: ORPOConfig, tokenizer: Any, here: Runtime) -> Scorer:
    """The same scorer on every rank, after a proof by one that holds the weights."""

    def make() -> Scorer:
        pad_id = tokenizer.pad_token_id or 0
        device = torch.device("cuda") if torch.cuda.is_available() else None
        return make_scorer(policy, config.attention, config.nll_scope, pad_id, device)

    if here.engine.name == "zero3":
        with gathered_while_used(policy):
            return make()
    scorer = here.on_main(make)
    return scorer if here.is_main else adopt_scorer(policy, scorer)


def _takes_varlen(core: Any, device: torch.device | None) -> bool:
    device = device or core.get_output_embeddings().weight.device
    if device.type != "cuda":
        return False
    reason = varlen_differs(core.config.get_text_config(), device)
    if reason is not None:
        logger.info("attention: packed pair by pair, because the varlen kernel %s", reason)
    return reason is None


def causal_model(model: Any) -> Any:
    """The transformers model itself, under an adapter if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def why_not_packed(core: Any) -> str | None:
    """Why a model can be known not to pack, before trying."""
    if getattr(core, "_is_stateful", False):
        return "keeps a recurrent state, which cannot be shared between answers"
    if core.get_output_embeddings() is None or core.base_model is core:
        return "has no separate backbone and vocabulary head"
    backbone = inspect.signature(core.base_model.forward).parameters
    if "position_ids" not in backbone:
        return "takes no position_ids"
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in backbone.values()):
        return "passes no further arguments to its attention"
    return None


def _teach_packing(core: Any) -> str | None:
    """Give the model a forward that scores packed batches; all other calls go the usual way.

    Returns why that cannot be, or None.
    """
    try:
        use_packed_attention(core)
    except (ValueError, KeyError, AttributeError) as error:
        return f"does not take attention from the interface ({error})".partition("\n")[0]
    plain = type(core).forward

    @functools.wraps(plain)  # generation reads the signature to know what the model takes
    def forward(self: Any, *args: Any, orpo_batch: Any = None, **kwargs: Any) -> Any:
        if orpo_batch is None:
            return plain(self, *args, **kwargs)
        return _packed_forward(self, orpo_batch)

    core.forward = types.MethodType(forward, core)
    return None


def _packed_forward(self: Any, orpo_batch: PackedBatch) -> Tensor:
    with no_masks():
        hidden = self.base_model(
            input_ids=orpo_batch.input_ids,
            # Without one, transformers reads positions back from the device to find sequences.
            attention_mask=torch.ones_like(orpo_batch.input_ids, dtype=torch.bool),
            position_ids=orpo_batch.position_ids,
            use_cache=False,
            orpo_segments=orpo_batch.segments,
            orpo_varlen=orpo_batch.varlen,
        ).last_hidden_state[0]
    return token_logps(self, hidden[orpo_batch.sources], orpo_batch.targets)


def sequence_logps(model: Any, ids: Tensor, wanted: int, packed: bool) -> Tensor:
    """Log-probs (B, wanted) in fp32 or better of the last tokens of plain sequences (B, T).

    packed: the model has proved that its head can be run apart from its backbone (``Scorer``).
    """
    core, targets = causal_model(model), ids[:, -wanted:]
    if packed:
        states = core.base_model(input_ids=ids, use_cache=False).last_hidden_state
        states = states[:, -wanted - 1 : -1]
        return token_logps(core, states.flatten(0, 1), targets.flatten()).view_as(targets)
    logits = model(input_ids=ids, use_cache=False).logits[:, -wanted - 1 : -1]
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return exact.log_softmax(-1).gather(2, targets[..., None])[..., 0]


def token_logps(core: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probs of the targets, (S,) in fp32 or better, from hidden states (S, H).

    Small inputs are scored at once; more than one chunk is recomputed in the backward pass.
    """
    vocabulary = core.config.get_text_config().vocab_size
    size = max(MIN_CHUNK, LOGITS_BYTES // (4 * vocabulary))
    if len(targets) <= size:
        return _chunk_logps(core, hidden, targets)
    parts = [
        checkpoint(_chunk_logps, core, some, wanted, use_reentrant=False)
        for some, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts)


def _chunk_logps(core: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = _finish_logits(core.config.get_text_config(), core.get_output_embeddings()(hidden))
    return _TargetLogps.apply(logits, targets)


class _TargetLogps(torch.autograd.Function):
    """log p(target), (S,) in fp32 or better, from logits (S, V) that nobody else needs.

    The same as ``-cross_entropy(logits.float(), targets, reduction="none")`` without its three
    further tensors of S x V: the logits themselves become their gradient. Blocks of rows stay in
    the cache of a CPU.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        normaliser = torch.empty(len(targets), dtype=exact, device=logits.device)
        for rows in _blocks(logits):
            normaliser[rows] = logits[rows].to(exact).logsumexp(1)
        ctx.save_for_backward(logits, targets, normaliser)
        return logits.gather(1, targets[:, None])[:, 0] - normaliser

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets, normaliser = ctx.saved_tensors  # a second backward raises here
        for rows in _blocks(logits):
            part = logits[rows].to(normaliser.dtype)
            part.sub_(normaliser[rows, None]).exp_().mul_(-grad[rows, None])
            part.scatter_add_(1, targets[rows, None], grad[rows, None].to(part.dtype))
            if part.dtype != logits.dtype:  # else it was written in place
                logits[rows] = part
        return logits, None


def _blocks(logits: Tensor) -> list[slice]:
    size = BLOCK_BYTES // (4 * logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    size = max(1, size)
    return [slice(at, at + size) for at in range(0, len(logits), size)]


def _finish_logits(config: Any, logits: Tensor) -> Tensor:
    """What some families do after the head: Cohere and Granite scale, Gemma caps softly."""
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scale := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def _failed_proof(model: Any, pad_id: int) -> str | None:
    """Score two random pairs packed and padded; None if they agree, else the reason."""
    core = causal_model(model)
    vocabulary = core.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (40,), generator=draw).tolist()
    pairs = [
        Pair(tokens[:9], tokens[9:16], tokens[16:21]),
        Pair(tokens[21:24], tokens[24:27], tokens[27:]),
    ]
    device = core.get_output_embeddings().weight.device
    training = model.training
    model.eval()
    try:
        found = [
            scorer.score(model, scorer.collate(pairs).to(device))
            for scorer in (Scorer(True, pad_id=pad_id), Scorer(False, pad_id=pad_id))
        ]
    except Exception as error:  # whatever an unknown architecture makes of packed input
        return f"does not run packed ({type(error).__name__}: {error})".partition("\n")[0]
    finally:
        model.train(training)
    coarse = getattr(core, "is_quantized", False) or core.dtype != torch.float32
    for name in ("chosen_logp", "rejected_logp"):
        packed, padded = (getattr(scores, name) for scores in found)
        if not torch.allclose(packed, padded, atol=5e-2 if coarse else 1e-3, rtol=0):
            return f"scores differently packed (by {(packed - padded).abs().max():.1g} nats)"
    return None
