"""The proof of packing: each answer scored as if it stood alone, or the fast path is not taken.

The oracle is one plain forward pass for every answer, without padding and without neighbours. It
is run on a miniature of the model (``miniature``) in fp32, where rounding is a millionth of what a
wrong architecture does, over lengths beyond every window: both answers, the prompt, all gradients.
In half precision, at the model's own size, right and wrong would overlap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from orpo_dist.base.types import Pair, PairScores
from orpo_dist.scoring.head import FORMER
from orpo_dist.scoring.miniature import REACH
from orpo_dist.scoring.model_config import number_of
from orpo_dist.upstream.accelerate import has_hook

# (prompt, chosen, rejected): prompts and answers on both sides of REACH, also in one pair, and next
# to nothing.
LENGTHS = ((20, 24, 13), (3, 30, 18), (2, 4, 5), (17, 2, 7), (1, 9, 3), (8, 2, 6))
LOGP_LIMIT = 1e-4  # nats; fp32 makes 1e-6, and 1e-5 through a hundred layers
GRADIENT_LIMIT = 1e-3  # of the gradient's norm

FINE_LIMIT, COARSE_LIMIT = 1e-3, 0.3  # nats, padded beside packed: of fp32, of all else

Score = Callable[[Any, Sequence[Pair]], PairScores]


def some_pairs(vocabulary: int, longest: int | None = None, seed: int = 0) -> list[Pair]:
    """Pairs of random tokens; longest: the model's context, where it is short."""
    draw = torch.Generator().manual_seed(seed)
    longest = longest or max(map(sum, LENGTHS))

    def tokens(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=draw).tolist()

    found = [Pair(tokens(p), tokens(c), tokens(r)) for p, c, r in LENGTHS]
    return [p for p in found if len(p.prompt) + max(len(p.chosen), len(p.rejected)) <= longest]


def alone(model: Any, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean log-prob of each chosen and rejected answer, and the NLL of prompt and chosen, (B,)."""
    found = []
    for pair in pairs:
        means = []
        for answer in (pair.chosen, pair.rejected):
            ids = torch.tensor([pair.prompt + answer], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logps = exact.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            means += [logps[-len(answer) :].mean(), -logps.sum()]
        found.append(torch.stack(means[:3]))
    chosen, nll, rejected = torch.stack(found).unbind(1)
    return chosen, rejected, nll


def measured(model: Any, scores: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores (3, B), and all gradients in a row, of a sum in which every one counts differently."""
    chosen, rejected, nll = scores
    weights = torch.linspace(1, 2, len(chosen), device=chosen.device, dtype=chosen.dtype)
    model.zero_grad()
    (weights * (chosen - 0.7 * rejected + 0.01 * nll)).sum().backward()
    gradient = torch.cat(
        [  # a part that packing leaves out has no gradient, which is an error like any other
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for p in model.parameters()
            if p.requires_grad
        ]
    )
    model.zero_grad()
    return torch.stack(scores).detach(), gradient


def packed_scores(scores: PairScores) -> tuple[Tensor, Tensor, Tensor]:
    """What ``alone`` returns, of a packed batch under the scope prompt_and_completion."""
    return scores.chosen_logp, scores.rejected_logp, scores.nll_sum


def gradient_apart(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def scores_apart(found: Tensor, expected: Tensor, pairs: Sequence[Pair]) -> float:
    """Nats a token, the worst of any answer or prompt."""
    sizes = torch.tensor([len(p.prompt) + len(p.chosen) - 1 for p in pairs], device=found.device)
    apart = (found - expected).abs()
    return max(apart[:2].max().item(), (apart[2] / sizes).max().item())


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Gradients on and autocast off, whatever whoever asks for a scorer is doing."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def fails(
    model: Any,
    teach: Callable[[Any], str | None],
    score: Score,
    draws: int = 2,
    enough: int = 1,
    how: str = "packed",
) -> str | None:
    """Why packing would change what this fp32 model computes; None if it is exact.

    teach: gives it the packed forward, or says why not. score: of pairs, packed, prompts included.
    A router may send a token elsewhere over the last bit: ``enough`` draws that are right will do.
    """
    context = number_of(model.config.get_text_config(), "max_position_embeddings")
    if context is not None and context <= REACH:
        context = None  # a length at which a rope changes, not an end
    words = model.config.get_text_config().vocab_size
    reasons: list[str] = []
    for seed in range(draws):
        pairs = some_pairs(words, context, seed)
        if not pairs:
            return f"has a context of {context} tokens, too short to prove anything"
        expected = measured(model, alone(model, pairs))
        if seed == 0 and (reason := teach(model)):
            return reason
        found, slope = measured(model, packed_scores(score(model, pairs)))
        apart = scores_apart(found, expected[0], pairs)
        if reason := apart_in_words(apart, gradient_apart(slope, expected[1]), how):
            reasons.append(reason)
        if seed + 1 - len(reasons) == enough:
            return None
    return reasons[0]


def padding_fails(model: Any, score: Score) -> str | None:
    """Why padding would change what this fp32 model computes; None if it is exact.

    score: of pairs, padded, prompts included. Some are right on some draws (Doge): most must be.
    """
    return fails(model, lambda _: None, score, draws=3, enough=2, how="beside longer answers")


def apart_in_words(apart: float, turned: float, how: str) -> str | None:
    """What is wrong with scores so many nats off, and a gradient by such a share; None if nothing.

    how: in which they were computed.
    """
    if apart <= LOGP_LIMIT and turned <= GRADIENT_LIMIT:
        return None
    return f"scores differently {how} (by {apart:.1g} nats a token, gradients by {turned:.1%})"


def changed(core: Any, small: Any) -> bool:
    """Whether a model holds parts that its class and config would not give it.

    Adapters and quantised layers are no such parts: they stand in for linear layers.
    """
    known = {type(module) for module in small.modules()}
    return any(
        _is_foreign(module, known) or (module is not core and _has_own_forward(module))
        for module in core.modules()
    )


def _is_foreign(module: Any, known: set[type]) -> bool:
    library = type(module).__module__.partition(".")[0]
    return type(module) not in known and library not in ("torch", "peft", "bitsandbytes")


def _has_own_forward(module: Any) -> bool:
    """Unless it is this toolkit's, or that of accelerate, which places weights."""
    own = vars(module).get("forward")
    return own is not None and not hasattr(own, FORMER) and not has_hook(module)


@torch.no_grad()
def model_fails(model: Any, packed: Any, padded: Any) -> str | None:
    """Why this very model is not to be packed, as far as its own precision can tell."""
    text = model.config.get_text_config()
    pairs = some_pairs(text.vocab_size, getattr(text, "max_position_embeddings", None))
    device, training = model.get_output_embeddings().weight.device, model.training
    model.eval()
    try:
        found = [
            torch.stack([scores.chosen_logp, scores.rejected_logp])
            for scorer in (packed, padded)
            for scores in [scorer.score(model, scorer.collate(pairs).to(device))]
        ]
    finally:
        model.train(training)
    exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    apart = (found[0] - found[1]).abs().max().item()
    if apart <= (FINE_LIMIT if exact else COARSE_LIMIT):
        return None
    return f"scores differently packed (by {apart:.1g} nats a token)"


def kernel_fails(model: Any, by_sdpa: Score, by_kernel: Score, plainly: str = "SDPA") -> str | None:
    """Why a kernel is not to be used with this model on its device; None if it is as good as SDPA.

    Both compute in bf16 and are held against fp32, in which no kernel but SDPA runs: the kernel
    may be off by no more than a few times what rounding costs SDPA. plainly: what stands in SDPA's
    place, where the kernel is not one of attention.
    """
    pairs = some_pairs(model.config.get_text_config().vocab_size)
    exact, slope = measured(model, packed_scores(by_sdpa(model, pairs)))
    model.bfloat16()
    errors = []
    for score in (by_sdpa, by_kernel):
        found, leaning = measured(model, packed_scores(score(model, pairs)))
        errors.append((scores_apart(found, exact, pairs), gradient_apart(leaning.float(), slope)))
    (rounding, turning), (apart, turned) = errors
    if apart <= 3 * rounding + 1e-3 and turned <= 3 * turning + 1e-3:
        return None
    return (
        f"computes something else here (by {apart:.1g} nats a token, {plainly} by "
        f"{rounding:.1g}; gradients by {turned:.1%} and {turning:.1%})"
    )
