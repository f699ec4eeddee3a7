"""MFU and peak memory of whole optimizer steps, alone and beside TRL and Liger.

MFU counts useful tokens only, prompts once, recomputed work not at all, against the data sheet's
dense bf16 peak. A step is one micro-batch: forward and backward under autocast, then AdamW.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.lines import Case, Found, Options
from benchmarks.gpu.material import adapted, autocast, llama, pairs_of, wait
from benchmarks.step import ALPHA, trl_share

WARM, TIMED = 2, 3
BESIDE = 4096  # tokens of the step that is timed beside others

Share = Callable[[list[Any]], torch.Tensor]


def sizes(options: Options) -> tuple[int, ...]:
    return (256, 512) if options.tiny else (2048, 4096, 8192, 16_384, 32_768)


def full(options: Options) -> dict[str, Case]:
    return {
        f"1B full, {size:,} tokens": partial(ours, options, "1B", False, size)
        for size in sizes(options)
    }


def lora(options: Options) -> dict[str, Case]:
    """Every size that fits; the largest ones also with gradient checkpointing."""
    found: dict[str, Case] = {
        f"8B LoRA, {size:,} tokens": partial(ours, options, "8B", True, size)
        for size in sizes(options)
    }
    for size in sizes(options)[-2:]:
        name = f"8B LoRA, {size:,} tokens, checkpointing"
        found[name] = partial(ours, options, "8B", True, size, checkpointing=True)
    return found


def beside(options: Options) -> dict[str, Case]:
    """The same pairs through TRL, with its kernels and with Liger's, by micro-batches."""
    size = 256 if options.tiny else BESIDE
    found: dict[str, Case] = {f"packed, {size:,} tokens": partial(ours, options, "1B", False, size)}
    for liger in (False, True):
        for micro in (8, 2):
            name = f"TRL{' with Liger' * liger}, micro-batches of {micro}"
            found[name] = partial(trl, options, size, micro, liger)
    return found


def ours(options: Options, shape: str, lora: bool, size: int, checkpointing: bool = False) -> Found:
    from orpo_dist.scoring.objective import orpo_loss
    from orpo_dist.scoring.scorer import make_scorer

    _free()
    model = llama(options, shape, torch.bfloat16 if lora else torch.float32).train()
    policy = adapted(model) if lora else model
    scorer = make_scorer(policy, "packed", "prompt_and_completion")
    if checkpointing:
        policy.enable_input_require_grads()
        policy.gradient_checkpointing_enable({"use_reentrant": False})

    def share(pairs: list[Any]) -> torch.Tensor:
        with autocast(options):
            scores = scorer.score(policy, scorer.collate(pairs).to(options.device))
        return orpo_loss(scores, ALPHA)[0]

    return measured(options, model, policy, size, lambda pairs: [(pairs, 1.0)], share)


def trl(options: Options, size: int, micro: int, liger: bool) -> Found:
    _free()
    model = llama(options, "1B", torch.float32).train()
    step = trl_share(model, word_tokenizer(model.config.vocab_size), liger)

    def share(pairs: list[Any]) -> torch.Tensor:
        with autocast(options):
            return step(pairs, pairs)

    def cut(pairs: list[Any]) -> list[tuple[list[Any], float]]:
        groups = [pairs[at : at + micro] for at in range(0, len(pairs), micro)]
        return [(group, len(group) / len(pairs)) for group in groups]

    return measured(options, model, model, size, cut, share)


def measured(
    options: Options,
    core: Any,
    policy: Any,
    size: int,
    cut: Callable[[list[Any]], list[tuple[list[Any], float]]],
    share: Share,
) -> Found:
    """Times steps over the same pairs; a loss that is not a number is wrong."""
    pairs = pairs_of(size, core.config.vocab_size)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    seconds, loss = [], 0.0
    for _ in range(WARM + TIMED):
        wait(options)
        began, parts = time.perf_counter(), []
        for group, weight in cut(pairs):
            part = share(group) * weight
            part.backward()
            parts.append(part.detach())
        optimizer.step()
        optimizer.zero_grad()
        wait(options)
        seconds.append(time.perf_counter() - began)
        loss = torch.stack(parts).sum().item()
    return _found(options, core, pairs, statistics.median(seconds[WARM:]), loss)


def _found(options: Options, core: Any, pairs: list[Any], seconds: float, loss: float) -> Found:
    from orpo_dist.batching.steps import StepPlan, nll_token_counts
    from orpo_dist.models.flops import model_flops
    from orpo_dist.training.throughput import peak_flops

    lengths = np.asarray([(len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs])
    counts = nll_token_counts(lengths, "prompt_and_completion")
    (step,) = StepPlan(lengths, counts, len(pairs), len(pairs)).in_order()
    flops = model_flops(core)
    peak = peak_flops(torch.device(options.device), bf16=True)
    mfu = flops(step.work) / seconds / peak if flops and peak else None
    cuda = options.device == "cuda"
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    values = {
        "pairs": len(pairs),
        "tokens": int(lengths.sum()),
        "seconds": seconds,
        "tokens_per_second": float(lengths.sum()) / seconds,
        "mfu": mfu,
        "peak_gib": memory,
        "loss": loss,
    }
    figure = f"{values['tokens_per_second']:.0f} tokens/s"
    figure += "" if mfu is None else f", MFU {mfu:.1%}"
    figure += "" if memory is None else f", peak {memory:.1f} GiB"
    return Found(bool(np.isfinite(loss)), figure, values)


def _free() -> None:
    """What the case before has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def word_tokenizer(vocabulary: int) -> Any:
    """What TRL's trainer asks for; the token ids are ours."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(3, vocabulary)} | {"<pad>": 0, "<s>": 1, "</s>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<pad>",
    )
