"""The proof of packing in half precision, and loss and gradients in it against fp32."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gpu.lines import Case, Found, Options
from benchmarks.gpu.material import adapted, autocast, llama, pairs_of

DRAWS = 20
SHAPE = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 2048,
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}


def cases(options: Options) -> dict[str, Case]:
    proofs = {
        f"proof of packing, bf16, {name}": partial(proof, options, name) for name in families()
    }
    return {
        **proofs,
        "packed beside padded, fp32": partial(beside_padded, options),
        "bf16 beside fp32, full": partial(beside_fp32, options, False),
        "bf16 beside fp32, LoRA": partial(beside_fp32, options, True),
    }


def families() -> dict[str, Any]:
    from transformers import Gemma2Config, LlamaConfig, MistralConfig

    return {
        "Llama": LlamaConfig,
        "Gemma 2": partial(Gemma2Config, sliding_window=16),
        "Mistral": partial(MistralConfig, sliding_window=16),
    }


def proof(options: Options, family: str) -> Found:
    """Every draw of random weights must be found to pack, since all of them do."""
    from transformers import AutoModelForCausalLM

    from orpo_dist.scoring.scorer import make_scorer

    config = families()[family](**SHAPE | (SMALL if options.tiny else {}))
    scorers = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        with torch.device(options.device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        scorers.append(make_scorer(model, "auto"))
    packed, varlen = (sum(getattr(s, name) for s in scorers) for name in ("packed", "varlen"))
    return Found(
        packed == DRAWS,
        f"{packed} of {DRAWS} draws packed, {varlen} with the varlen kernel",
        {"packed": packed, "varlen": varlen, "draws": DRAWS},
    )


def beside_padded(options: Options) -> Found:
    model = llama(options, "small", torch.float32) if options.tiny else _small(options)
    packed, padded = (
        _loss_and_gradients(options, model, how, False) for how in ("packed", "padded")
    )
    return _apart(packed, padded, 1e-3)


def beside_fp32(options: Options, lora: bool) -> Found:
    """Autocast over fp32 weights, as full training has it, or over an adapter."""
    model = llama(options, "small", torch.float32) if options.tiny else _small(options)
    if lora:
        model = adapted(model)
    half, whole = (_loss_and_gradients(options, model, "packed", on) for on in (True, False))
    return _apart(half, whole, 5e-2)


def _small(options: Options) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(options.device):
        return LlamaForCausalLM(LlamaConfig(**SHAPE))


def _loss_and_gradients(options: Options, model: Any, how: str, half: bool) -> tuple[float, Any]:
    from orpo_dist.scoring.objective import orpo_loss
    from orpo_dist.scoring.scorer import make_scorer

    scorer = make_scorer(model, how)
    model.zero_grad()
    pairs = pairs_of(500, 512)
    with autocast(options) if half else torch.autocast(options.device, enabled=False):
        scores = scorer.score(model, scorer.collate(pairs).to(options.device))
    loss, _ = orpo_loss(scores, 0.5)
    loss.backward()
    found = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found)


def _apart(mine: tuple[float, Any], other: tuple[float, Any], most: float) -> Found:
    """Of the gradients the length of the difference counts, over the length of the whole."""
    loss = abs(mine[0] - other[0]) / abs(other[0])
    gradient = ((mine[1] - other[1]).norm() / other[1].norm()).item()
    return Found(
        loss < most / 10 and gradient < most,
        f"loss apart by {loss:.1e}, gradients by {gradient:.1e}",
        {"loss": loss, "gradients": gradient},
    )
