"""Settings that an engine cannot serve, and those beside them that it can."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_dist import ORPOConfig, UserError
from orpo_dist.engines.compatibility import (
    FSDP2_OPTIMIZERS,
    OFFLOAD_OPTIMIZERS,
    accumulation,
    refuse_impossible,
)
from orpo_dist.engines.engine import Engine

OFFLOADED = Engine("zero3", offload="cpu")


def config(**changes: Any) -> ORPOConfig:
    return ORPOConfig(model="m", data_path="d.jsonl", **changes)


@pytest.mark.parametrize(
    ("engine", "changes", "words"),
    [
        (Engine("zero3"), {"quantization": "int8", "peft": True}, "zero3 cannot shard int8"),
        (Engine("fsdp2"), {"quantization": "int8", "peft": True}, "fsdp2 cannot shard int8"),
        (Engine("fsdp2"), {"optimizer": "adafactor"}, "does not work on the shards of fsdp2"),
        (Engine("fsdp2"), {"optimizer": "adamw_8bit"}, "does not work on the shards of fsdp2"),
        (OFFLOADED, {"optimizer": "sgd"}, "DeepSpeed cannot offload it"),
        (OFFLOADED, {"optimizer": "paged_adamw_8bit"}, "DeepSpeed cannot offload it"),
        (Engine("zero2"), {"lora_dtype": "bfloat16", "peft": True}, "zero2 updates weights in fp"),
        (Engine("fsdp2"), {"lora_dtype": "bfloat16", "peft": True}, "or use the engine ddp"),
    ],
)  # fmt: skip
def test_what_cannot_be(engine: Engine, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        refuse_impossible(config(**changes), engine)


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        *((Engine("fsdp2"), {"optimizer": name}) for name in FSDP2_OPTIMIZERS),
        *((OFFLOADED, {"optimizer": name}) for name in OFFLOAD_OPTIMIZERS),
        (Engine("zero3"), {"optimizer": "adafactor"}), (Engine("ddp"), {"optimizer": "adafactor"}),
        (Engine("zero2"), {"quantization": "int8", "peft": True}),
        *((Engine(name), {"optimizer": "adamw_8bit"}) for name in ("ddp", "zero1", "zero3")),
        (Engine("ddp"), {"lora_dtype": "bfloat16", "peft": True}),
        (Engine("fsdp2"), {"quantization": "int4", "peft": True}),
    ],
)  # fmt: skip
def test_what_can_be(engine: Engine, changes: dict[str, Any]) -> None:
    refuse_impossible(config(**changes), engine)


@pytest.mark.parametrize(
    ("settings", "ranks", "expected"),
    [
        ({"gradient_accumulation": 5}, 3, 5),
        ({"global_batch_size": 16, "batch_size": 2}, 2, 4),
        ({"global_batch_size": 17, "batch_size": 2}, 2, 5),  # rounded up
        ({"global_batch_size": 3, "batch_size": 4}, 8, 1),
    ],
)  # fmt: skip
def test_micro_batches_of_a_step(settings: dict[str, int], ranks: int, expected: int) -> None:
    assert accumulation(config(**settings), ranks) == expected
