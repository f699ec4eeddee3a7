"""The census of a model's weights."""

from __future__ import annotations

from orpo_dist.config import ORPOConfig
from orpo_dist.planning.census import take_census
from orpo_dist.planning.skeleton import Method
from tests.unit.planning.plans import small_llama


def test_census_of_qlora() -> None:
    config = ORPOConfig(peft=True, quantization="int4")
    census = take_census(small_llama(2), config, Method(True, "int4"), "bf16")
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 192)
    rank_16 = 2 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 192))
    assert census.quantised == linear
    assert census.trains == rank_16
    assert census.frozen == linear + 2 * 600 * 64 + 5 * 64
