"""Plans for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orpo_dist import cli

MODELS = Path(__file__).parent / "models"


def plan(capsys: Any, tmp_path: Path, *words: str, code: int = 0) -> tuple[str, dict[str, Any]]:
    """Run the command; what it printed and what it wrote."""
    out = tmp_path / "plan.json"
    assert cli.main(["plan", *words, "--json", str(out)]) == code
    return capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))


def weights_of(candidate: dict[str, Any]) -> float:
    return sum(p["bytes"] for p in candidate["parts"] if p["name"] == "weights")


def by_preset(found: dict[str, Any], method: str, checkpointing: bool) -> dict[str, Any]:
    return {
        c["preset"]: c
        for c in found["candidates"]
        if (c["method"], c["checkpointing"]) == (method, checkpointing)
    }


def small_llama(layers: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=600,
    )  # fmt: skip
