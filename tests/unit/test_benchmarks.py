"""The benchmarks run, and agree on the loss. Their figures mean nothing on such small inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from benchmarks.gpu.material import SMOKE
from benchmarks.parts import PARTS
from benchmarks.scale import (
    Shape,
    all_to_all_bytes,
    all_to_all_seconds,
    gradient_seconds,
    lengths_like,
    scaled,
)
from orpo_dist.config import ORPOConfig
from orpo_dist.planning.census import take_census
from orpo_dist.planning.skeleton import Method
from orpo_dist.planning.speed import BETWEEN, WITHIN
from orpo_dist.scoring.scorer import make_scorer
from tests.conftest import DEMO
from tests.launching import environment
from tests.unit.planning.plans import small_llama

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str, out: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments, "--json", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_step_beside_trl(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = benchmark(
        "step.py", tmp_path / "out.json", "--model", str(tiny_model_dir),
        "--data", str(DEMO / "train.jsonl"), "--pairs", "4", "--batches", "2", "--repeats", "1",
        "--contenders", "packed:4:300", "padded:4", "trl:4", "trl:1",
    )  # fmt: skip
    rows = found["contenders"]
    assert list(rows) == ["packed:4:300", "padded:4", "trl:4", "trl:1"]
    for name in ("padded:4", "trl:4"):  # the same batch: the same loss
        assert rows[name]["losses"] == pytest.approx(rows["packed:4:300"]["losses"], abs=1e-4)
    assert found["limit_seconds"] > 0 and found["padded_tokens"] > found["useful_tokens"]
    assert rows["packed:4:300"]["evaluation"] > 0


def test_step_in_bf16(tiny_model_dir: Path, tmp_path: Path) -> None:
    """fp32 weights under autocast, as ``mixed_precision: bf16`` has them."""
    found = benchmark(
        "step.py", tmp_path / "out.json", "--model", str(tiny_model_dir),
        "--data", str(DEMO / "train.jsonl"), "--pairs", "4", "--batches", "1", "--repeats", "1",
        "--contenders", "packed:4:300", "padded:4", "--precision", "bf16",
    )  # fmt: skip
    assert found["machine"].endswith("bf16 under autocast")
    packed, padded = (found["contenders"][name]["losses"] for name in ("packed:4:300", "padded:4"))
    assert packed == pytest.approx(padded, abs=0.03) and packed != padded


def test_parts_of_a_step(tmp_path: Path) -> None:
    """They add up, and a large vocabulary is the head's, in the backward pass as well."""
    shares = {}
    for words in (600, 20_000):
        torch.manual_seed(0)
        model = tmp_path / str(words)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
        config = LlamaConfig(**shape, num_attention_heads=2, vocab_size=words)
        AutoModelForCausalLM.from_config(config).save_pretrained(model)
        AutoTokenizer.from_pretrained(SMOKE / "model").save_pretrained(model)
        found = benchmark(
            "parts.py", tmp_path / f"{words}.json", "--model", str(model),
            "--data", str(SMOKE / "train.jsonl"), "--steps", "2", "--precision", "bf16",
        )  # fmt: skip
        assert sum(found[name] for name in PARTS) == pytest.approx(found["step"])
        assert min(found.values()) > 0
        shares[words] = found["head"] / (found["step"] - found["host"])
    assert shares[20_000] > 2 * shares[600] and shares[20_000] > 0.5


# --- simulated scale


def shape() -> Shape:
    census = take_census(small_llama(2), ORPOConfig(), Method(), "bf16")
    return Shape(census, heads=8, keys=2, size=32)


def test_what_a_group_sends_by_hand() -> None:
    """1,000 tokens on 4 ranks: 8 heads' queries and output, 4 keys and values."""
    found = all_to_all_bytes(shape(), 1000, 4)
    assert found == 2 * 2 * (8 + 8 + 4 + 4) * 32 * 1000 / 4 * 2 * 3 / 4
    assert all_to_all_bytes(shape(), 1000, 1) == 0
    slow, fast = (all_to_all_seconds(shape(), 100_000, ranks) for ranks in (16, 8))
    assert slow > 2 * fast  # beyond a machine
    assert all_to_all_seconds(shape(), 100_000, 8) < all_to_all_seconds(shape(), 100_000, 2)


def test_gradients_are_reduced_within_machines_first() -> None:
    size = 1e9
    assert gradient_seconds(size, 1) == 0
    assert gradient_seconds(size, 8) == pytest.approx(2 * 7 / 8 / WITHIN)
    assert gradient_seconds(size, 16) - gradient_seconds(size, 8) == pytest.approx(1 / 8 / BETWEEN)


def test_groups_of_ranks_wait_less_for_each_other() -> None:
    alike = np.full((100, 3), 50)
    assert scaled(shape(), alike, 8, 1, 4).idle == 0
    long = lengths_like("long")
    alone, shared = scaled(shape(), long, 64, 1, 1), scaled(shape(), long, 8, 8, 8)
    assert shared.idle < 0.2 and alone.idle > 0.5
    assert alone.all_to_all == 0 < shared.all_to_all
    assert alone.seconds == alone.computing + alone.gradients
    assert 0 < alone.efficiency < shared.efficiency < 1


def test_plan_at_scale(tokenizer_dir: Path, tmp_path: Path) -> None:
    rows = benchmark(
        "plan.py", tmp_path / "out.json", "--tokenizer", str(tokenizer_dir), "--ranks", "8",
        "--data", str(DEMO / "train.jsonl"),
    )  # fmt: skip
    assert rows[0]["balance"] > 0.98


@pytest.mark.parametrize("pairs", [2000, pytest.param(100_000, marks=pytest.mark.timing)])
def test_audit_finds_what_was_planted(pairs: int, tmp_path: Path) -> None:
    """In a minute where there are 100 000: the promise of two cores."""
    found = benchmark("audit.py", tmp_path / "out.json", "--pairs", str(pairs))
    assert pairs < 100_000 or found["seconds"] < 60
    for rule, counts in found["rules"].items():
        assert counts["planted"] >= pairs // 100, rule
        assert counts["found"] >= 0.99 * counts["planted"], rule
        assert counts["false"] == 0, rule


def test_evaluation_beside_trl(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = benchmark(
        "evaluate.py", tmp_path / "out.json", "--model", str(tiny_model_dir), "--repeats", "1",
        "--data", str(DEMO / "eval.jsonl"), "--pairs", "16", "--contenders", "packed:4", "trl:4",
    )["contenders"]  # fmt: skip
    assert found["packed:4"]["accuracy"] == pytest.approx(found["trl:4"]["accuracy"])
    assert found["packed:4"]["chosen"] == pytest.approx(found["trl:4"]["chosen"], abs=1e-4)


@pytest.mark.slow
def test_ensembles_of_three_alphas(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = benchmark(
        "ensembles.py", tmp_path / "out.json", "--model", str(tiny_model_dir), "--steps", "2",
        "--work", str(tmp_path / "work"), "--prompts", "2", "--max-new-tokens", "4",
    )["rows"]  # fmt: skip
    assert list(rows) == [
        "base", "alpha 0.1", "alpha 0.5", "alpha 1", "average", "of logits", "vote", "best_of",
        "uniform soup", "greedy soup",
    ]  # fmt: skip
    assert rows["vote"]["perplexity"] is None and rows["average"]["perplexity"] > 1


@pytest.mark.parametrize("family", ["gpt_oss", "lfm2"])
def test_what_packing_saves_for_a_family_is_exact(family: str) -> None:
    from benchmarks.saved import apart, share, small

    lengths = np.array([(9, 5, 3), (2, 7, 9), (12, 30, 4)])
    model = small(family)
    assert apart(model, make_scorer(model, "packed"), lengths) < 1e-5
    assert share(np.tile([(10, 5, 5)], (8, 1)), 4096) == pytest.approx(20 / 30)


def test_shared_sequences(tmp_path: Path) -> None:
    rows = benchmark(
        "sequence.py", tmp_path / "out.json", "--tokens", "700", "--width", "192", "--repeats", "1"
    )
    alone, shared = rows
    assert (alone["processes"], shared["processes"]) == (1, 2)
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert 0.4 < shared["bytes"] / alone["bytes"] < 0.8
