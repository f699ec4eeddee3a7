"""A pair that does not fit on one process trains on several, which share its tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.launching import curve, finish, launched, start, training

TOKENS = 32_768
LIMIT = 6 << 30  # bytes of address space of a process, of which libraries take half
LIMITED = (
    "import os, resource, sys; "
    f"resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT})); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture(scope="module")
def wide_model(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Little attention and much memory a token: over 4 GiB of activations for such a pair."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=4096, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2 * TOKENS,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide-llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def long_rows(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    draw = np.random.default_rng(0)
    words = [tokenizer.decode([token]) for token in range(300, 600)]
    text = "".join(draw.choice(words, 2 * TOKENS))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: TOKENS - 400]
    rows = [
        {"prompt": tokenizer.decode(ids[at:]), "chosen": "Yes, it is.", "rejected": "No."}
        for at in (0, 4)
    ]
    path = tmp_path_factory.mktemp("long") / "long.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def words(model: Path, folder: Path, data: Path, *flags: str) -> list[str]:
    return training(
        model, folder, "--data-path", str(data), "--max-prompt-length", "none", "--batch-size", "1",
        "--global-batch-size", "2", "--max-steps", "2", *flags,
    )  # fmt: skip


def limited(command: list[str]) -> Any:
    return finish(start([sys.executable, "-c", LIMITED, *command]), 900)


@pytest.mark.slow
def test_a_pair_too_long_for_one_process(wide_model: Path, long_rows: Path, tmp_path: Path) -> None:
    alone = words(wide_model, tmp_path / "alone", long_rows)
    code, _, errors = limited([sys.executable, "-m", "orpo_dist", *alone])
    assert code == 2 and "out of memory with one pair of 32" in errors, errors
    assert "sequence_parallel" in errors and "Traceback" not in errors
    shared = words(wide_model, tmp_path / "shared", long_rows, "--sequence-parallel", "4")
    code, _, errors = limited([*launched("ddp", "--num-processes", "4"), *shared])
    assert code == 0, errors
    assert len(curve(tmp_path / "shared")) == 2
