"""Random models, pairs and texts: nothing to download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.lines import Options
from orpo_dist.base.types import Pair

SMOKE = Path(__file__).parents[2] / "orpo_dist" / "sweeps" / "presets" / "smoke"

TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512,
}  # fmt: skip
SHAPES = {
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128_256, "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 128_256, "tie_word_embeddings": False,
    },
}  # fmt: skip


def llama(options: Options, name: str, dtype: torch.dtype) -> Any:
    """A Llama of this shape with random weights, on the device."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = TINY if options.tiny else SHAPES[name]
    torch.manual_seed(0)
    with torch.device(options.device):
        return AutoModelForCausalLM.from_config(
            LlamaConfig(**shape, max_position_embeddings=8192), dtype=dtype
        )


def adapted(model: Any) -> Any:
    """In a fresh LoRA adapter with the toolkit's own settings."""
    from orpo_dist import ORPOConfig
    from orpo_dist.models.adapters import add_adapter, lora_config

    return add_adapter(model, lora_config(ORPOConfig(peft=True)))


def pairs_of(tokens: int, vocabulary: int, seed: int = 0) -> list[Pair]:
    """Random pairs of about so many tokens together, as long as those of HH harmless."""
    draw = np.random.default_rng(seed)
    found: list[Pair] = []
    left = tokens
    while left > 0:
        lengths = np.clip(draw.lognormal(np.log([110, 28, 36]), [0.8, 0.9, 0.9]), 2, 512)
        parts = [draw.integers(3, vocabulary, int(n)).tolist() for n in lengths]
        left -= sum(map(len, parts))
        found.append(Pair(*parts))
    return found


def smoke_rows(count: int) -> list[dict[str, str]]:
    """Rows of the pairs that are shipped with the toolkit, over and over."""
    lines = (SMOKE / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(lines[number % len(lines)]) for number in range(count)]


def smoke_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SMOKE / "model")


def trainer(options: Options, model: Any, rows: list[dict[str, str]], **settings: Any) -> Any:
    """An ``ORPOTrainer`` that writes nothing but its checkpoints' folder."""
    import tempfile

    from orpo_dist import ORPOConfig, ORPOTrainer

    settings = {"max_prompt_length": 256, "max_completion_length": 128, **settings}
    config = ORPOConfig(
        project_name=tempfile.mkdtemp(), log="none", save_strategy="no", lr=1e-5, **settings
    )
    return ORPOTrainer(
        model=model, args=config, train_dataset=rows, processing_class=smoke_tokenizer()
    )


def wait(options: Options) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


def autocast(options: Options) -> torch.autocast:
    return torch.autocast(options.device, torch.bfloat16)
