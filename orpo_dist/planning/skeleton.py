"""The policy without its weights: the real modules over tensors that hold no data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from orpo_dist.base.reasons import reason_of
from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.models.adapters import add_adapter, hold_in, lora_config
from orpo_dist.models.randomness import quiet
from orpo_dist.models.towers import freeze_towers
from orpo_dist.planning.layers import keep_layers

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16, "none": torch.float32}

# NF4 with double quantisation (arXiv 2305.14314): 4 bits, an 8-bit scale per 64 weights, and an
# fp32 scale per 256 of those. int8: one byte, and an fp32 scale per row (left out).
QUANTISED_BYTES = {"int4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}


@dataclass(frozen=True)
class Method:
    """How a model is trained. quantization: of the frozen base, none unless ``peft``."""

    peft: bool = False
    quantization: str | None = None

    def __str__(self) -> str:
        if not self.peft:
            return "full"
        return f"LoRA {self.quantization}" if self.quantization else "LoRA"


def method_of(config: ORPOConfig) -> Method:
    return Method(config.peft, config.quantization)


class QuantisedLinear(nn.Linear):
    """Stands in for bitsandbytes' frozen layers: whole weights exist while they multiply only."""

    def forward(self, inputs: Tensor) -> Tensor:
        output = _Dequantised.apply(inputs.to(_compute_dtype(self.weight)), self.weight)
        return output if self.bias is None else output + self.bias


class _Dequantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return inputs @ weight.clone().to(inputs.dtype).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grad @ weight.clone().to(grad.dtype), None


def _compute_dtype(weight: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype


def build(
    hf_config: Any,
    config: ORPOConfig,
    method: Method,
    precision: str,
    layers: int | None = None,
    engine_casts: bool = False,
) -> Any:
    """The policy as training holds it, with its first ``layers`` layers only.

    Everything lies on the meta device.
    engine_casts: every weight is in the computing precision itself, as DeepSpeed and FSDP2 have it.
    """
    half = HALF[precision]
    shape = copy.deepcopy(hf_config)
    if layers is not None:
        keep_layers(shape.get_text_config(), layers)
    dtype = half if method.peft or engine_casts else torch.float32
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(
                shape, dtype=dtype, trust_remote_code=config.trust_remote_code
            )
        except Exception as error:
            if layers is not None:  # a whole one can be built
                raise
            reason = reason_of(error)
            raise UserError(
                f"model {config.model}: cannot be built from its config.json ({reason})"
            ) from error
        quiet(model)
        if method.quantization:
            _quantise(model)
        if method.peft:
            model = add_adapter(model, lora_config(config))
            hold_in(model, config.lora_dtype)
        freeze_towers(model.get_base_model() if method.peft else model)
        if engine_casts:
            _cast(model, half)
    return model.train()


def _quantise(model: Any) -> None:
    """As bitsandbytes does it: all linear layers but the head."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.__class__ = QuantisedLinear


def _cast(model: Any, dtype: torch.dtype) -> None:
    """All weights but the quantised ones."""
    quantised = {id(weight) for weight in quantised_weights(model)}
    for parameter in model.parameters():
        if id(parameter) not in quantised:
            parameter.data = parameter.data.to(dtype)


def quantised_weights(model: Any) -> Iterator[Tensor]:
    """The weights that lie in 4 or 8 bits."""
    for module in model.modules():
        if isinstance(module, QuantisedLinear):
            yield module.weight
