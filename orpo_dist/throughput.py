"""How fast a run goes: tokens and pairs a second, padding avoided, and MFU where the peak is known.

Only useful tokens count, prompts once; recomputed work does not count (PaLM, arXiv 2204.02311, B).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from orpo_dist.batching import Work

# Dense bf16 peaks from the makers' data sheets, FLOP/s, by a part of the device's name.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations of one training step, from the sizes of the weights.

    body, head: weights that every token, or every scored token, is multiplied with; trainable_*:
    those that need a gradient. layers, width: of the attention.
    """

    body: int
    head: int
    trainable_body: int
    trainable_head: int
    layers: int
    width: int

    def __call__(self, work: Work) -> float:
        """2 per weight forward, 2 for the gradient of its input, 2 for its own."""
        return (
            (4 * self.body + 2 * self.trainable_body) * work.tokens
            + (4 * self.head + 2 * self.trainable_head) * work.scored
            + 12 * self.layers * self.width * work.seen
        )


def model_flops(core: Any) -> ModelFlops | None:
    """For a transformers model; None where the weights do not tell (quantised, experts)."""
    config = core.config.get_text_config()
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts"))
    if getattr(core, "is_quantized", False) or experts:
        return None
    head = core.get_output_embeddings()
    if head is None or not hasattr(config, "hidden_size"):
        return None
    inside = {id(parameter) for parameter in head.parameters()}
    outside = {id(parameter) for parameter in core.get_input_embeddings().parameters()} | inside
    body = [p for p in core.parameters() if id(p) not in outside and _size(p)[1] > 1]
    return ModelFlops(
        body=sum(_size(p)[0] for p in body),
        head=sum(_size(p)[0] for p in head.parameters()),
        trainable_body=sum(_size(p)[0] for p in body if p.requires_grad),
        trainable_head=sum(_size(p)[0] for p in head.parameters() if p.requires_grad),
        layers=config.num_hidden_layers,
        width=config.num_attention_heads
        * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
    )


def _size(parameter: torch.nn.Parameter) -> tuple[int, int]:
    """Elements and dimensions of a weight, also of one that DeepSpeed ZeRO-3 has partitioned."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return torch.Size(shape).numel(), len(shape)


def peak_flops(device: torch.device, bf16: bool) -> float | None:
    """The device's dense peak for this precision, where a data sheet gives it."""
    if device.type != "cuda" or not bf16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


class Throughput(TrainerCallback):
    """Clocks the steps of a log interval, optimizer included, evaluations and saving left out."""

    def __init__(self, flops: ModelFlops | None = None, peak: float | None = None):
        """peak: FLOP/s of all ranks together."""
        self.flops, self.peak = flops, peak
        self._reset()

    def _reset(self) -> None:
        self._work, self._pairs, self._steps, self._seconds = Work(), 0, 0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds += time.perf_counter() - self._began
        self._steps += 1

    def add(self, work: Work, pairs: int) -> None:
        """Count a step, over all ranks."""
        self._work += work
        self._pairs += pairs

    def pop(self) -> dict[str, float]:
        """Rates since the last call; empty where no step was finished."""
        work, pairs, steps, seconds = self._work, self._pairs, self._steps, self._seconds
        self._reset()
        if not steps or not seconds:
            return {}
        found = {
            "seconds_per_step": seconds / steps,
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": work.tokens / seconds,
            "padding_avoided": 1 - work.tokens / work.padded,
        }
        if self.flops and self.peak:
            found["mfu"] = self.flops(work) / seconds / self.peak
        return found
