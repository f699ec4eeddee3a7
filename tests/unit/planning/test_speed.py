"""What is sent between GPUs, by hand."""

from __future__ import annotations

from orpo_dist.config import ORPOConfig
from orpo_dist.engines.engine import Engine, reduces_once
from orpo_dist.planning.census import take_census
from orpo_dist.planning.skeleton import Method
from orpo_dist.planning.speed import sent_bytes
from tests.unit.planning.plans import small_llama


def test_what_is_sent_by_hand() -> None:
    """Bytes a parameter in bf16 with four micro-batches: gradients go out in fp32."""
    census = take_census(small_llama(2), ORPOConfig(), Method(), "bf16")

    def sent(name: str, memory: float = 1e15) -> float:
        once = reduces_once(Engine(name), census.trains, memory)
        return sent_bytes(census, Engine(name), 4, once) / census.total

    assert sent("single") == 0
    assert sent("ddp") == 2 * 4
    assert sent("zero1") == 4 + 2
    assert sent("zero2") == 4 * 4 + 2
    assert sent("zero3") == 4 * (4 + 2 * 2)
    assert sent("fsdp2") == 4 + 4 * 2 * 2
    assert sent("fsdp2", memory=1e3) == 4 * (4 + 2 * 2)
