"""Vocabularies of real models on two ranks whose heads are cut into different numbers of chunks.

Every engine makes its collectives by calls of a module, so ranks that called the head once a chunk
would wait for each other for ever (ZeRO-3), or mix up gradients (FSDP2).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from orpo_dist.scoring.head import chunk_tokens
from tests.conftest import DEMO
from tests.launching import ENGINES, assert_engine, curve, launched, run, training

LORA = ("--peft", "--target-modules", "q_proj,lm_head", "--lr", "1e-2")
METHODS = {"full": (), "lora": ("--peft",), "lora on the head": LORA}
STEPS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By turns a long prompt with short answers, and a short prompt with long answers."""
    rows = [json.loads(line) for line in (DEMO / "train.jsonl").read_text().splitlines()]
    words = " ".join(row["chosen"] for row in rows).split()
    lines = []
    for number in range(2 * STEPS):
        text = words[7 * number :]
        prompt, answer = ((120, 8), (8, 110))[number % 2]
        lines.append({
            "prompt": " ".join(text[:prompt]),
            "chosen": " ".join(text[prompt : prompt + answer]),
            "rejected": " ".join(text[prompt + 5 : prompt + 5 + answer]),
        })  # fmt: skip
    path = tmp_path_factory.mktemp("uneven") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


_MODELS: dict[int, Path] = {}


@pytest.fixture
def large_model(
    vocabulary: int, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if vocabulary not in _MODELS:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
            bos_token_id=None, eos_token_id=2, pad_token_id=0, initializer_range=0.08,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp(f"words{vocabulary}")
        LlamaForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(folder)
        _MODELS[vocabulary] = folder
    return _MODELS[vocabulary]


def words(model: Path, folder: Path, data: Path, *flags: str) -> list[str]:
    return training(
        model, folder, "--data-path", str(data), "--max-prompt-length", "1000",
        "--global-batch-size", "2", "--batch-size", "1", "--max-tokens-per-microbatch", "none",
        "--max-steps", str(STEPS), *flags,
    )  # fmt: skip


_CURVES: dict[tuple[int, str], dict[int, float]] = {}


@pytest.mark.parametrize(
    ("engine", "method", "vocabulary"),
    [
        ("zero3", "full", 131_072),
        ("zero3", "lora on the head", 131_072),
        ("fsdp2", "full", 131_072),
        *(
            pytest.param(engine, method, vocabulary, marks=pytest.mark.slow)
            for vocabulary in (131_072, 262_144)
            for engine in ENGINES
            for method in METHODS
            if (engine, method, vocabulary) not in (
                ("zero3", "full", 131_072), ("zero3", "lora on the head", 131_072),
                ("fsdp2", "full", 131_072),
            )
        ),
    ],
)  # fmt: skip
def test_ranks_with_unequal_chunks_train_as_one_process(
    engine: str, method: str, vocabulary: int, large_model: Path, data: Path, tmp_path: Path
) -> None:
    key = vocabulary, method
    if key not in _CURVES:
        single = [sys.executable, "-m", "orpo_dist"]
        run(single + words(large_model, tmp_path / "one", data, *METHODS[method]))
        _CURVES[key] = curve(tmp_path / "one")
        assert len(_CURVES[key]) == STEPS
        lengths = json.loads((tmp_path / "one" / "data_report.json").read_text())["train"]["tokens"]
        assert 2 * lengths["chosen"]["median"] > chunk_tokens(vocabulary)  # two chunks, or one
    run(launched(engine) + words(large_model, tmp_path / "two", data, *METHODS[method]))
    assert_engine(tmp_path / "two", engine, 2)
    assert curve(tmp_path / "two") == pytest.approx(_CURVES[key], rel=1e-4)
