"""Families of transformers through the real trainer, beside single plain forwards.

Those that people train here, all that transformers knows in ``make test-slow``; the same as
``python benchmarks/families.py``, which also prints figures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.families import families
from benchmarks.zoo.check import check

TRAINED = (  # of those that differ in a name or a norm alone one, as all are below
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5",
    "gemma2", "gemma3", "gemma4", "phi3", "olmo3", "granitemoehybrid", "cohere2", "glm4",
    "deepseek_v3", "gpt_oss", "lfm2", "gpt2", "mamba2",
)  # fmt: skip


@pytest.mark.parametrize("family", TRAINED)
def test_what_people_train_is_exact(family: str, tmp_path: Path) -> None:
    found = check(family, tmp_path, ["full"])
    assert found["verdict"] in ("packed", "padded"), found
    assert "traceback" not in found["plan"], found["plan"]
    assert found["plan"]["counts"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_every_family_is_exact_or_refused(family: str, tmp_path: Path) -> None:
    found = check(family, tmp_path)
    assert found["verdict"] in ("packed", "padded", "refused"), found


def test_a_model_that_mixes_up_precisions_is_told_to_do_without(tmp_path: Path) -> None:
    """Dbrx adds bf16 to fp32 under autocast, in transformers' own code."""
    found = check("dbrx", tmp_path, ["full"])
    assert found["verdict"] == "packed"
    assert "does not run in mixed precision (index_add_" in found["bf16"]["full"]["refused"]
