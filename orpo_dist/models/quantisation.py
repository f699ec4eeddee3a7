"""int4 and int8 weights, which bitsandbytes computes with."""

from __future__ import annotations

from typing import Any

import torch

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.engine import Engine
from orpo_dist.upstream import check


def quantization_config(config: ORPOConfig, compute_dtype: torch.dtype, engine: Engine) -> Any:
    """What transformers loads a quantised base by; None where the config asks for none.

    engine: the one that is to hold the weights.
    """
    if config.quantization is None:
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"quantization {config.quantization} needs bitsandbytes: pip install 'orpo_dist[quant]'"
        ) from error
    check("bitsandbytes")
    from transformers import BitsAndBytesConfig

    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        # Engines that shard weights cannot cut whole numbers: the bits lie in floats for them.
        bnb_4bit_quant_storage=compute_dtype if engine.shards_weights else torch.uint8,
    )


def why_not_quantised(quantization: str, device: str | int) -> str | None:
    """Why such weights cannot compute on a device, in words; None where they can."""
    try:
        from bitsandbytes.nn import Linear4bit, Linear8bitLt
    except ImportError:
        return "bitsandbytes is not installed"
    try:
        layer = (Linear4bit if quantization == "int4" else Linear8bitLt)(64, 64)
        layer.requires_grad_(False).to(device).eval()
        layer(torch.zeros(1, 64, device=device))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"bitsandbytes cannot compute here ({reason})"
    return None
