"""Runs micro-batches on fake ``cuda:0`` tensors and prints what they ask of the GPU, as JSON.

    LD_PRELOAD=STUB/libcuda.so.1 PYTHONPATH=CUDA_TORCH:. python -m tests.cuda.trace [NAME ...]

``make test-fake-cuda`` prepares both and starts it through the test beside it. Its output of some
day lies in ``benchmarks/results/fake_cuda*.json``.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from typing import Any
from unittest import mock

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from orpo_dist.base.types import Pair
from orpo_dist.config import ORPOConfig
from orpo_dist.planning.skeleton import Method, build
from orpo_dist.planning.trace import _checkpoint, _off_meta
from orpo_dist.scoring import parcel
from orpo_dist.scoring.finish import Finish
from orpo_dist.scoring.hardware import Hardware
from orpo_dist.scoring.metrics import RunningMeans, step_means
from orpo_dist.scoring.objective import orpo_loss
from orpo_dist.scoring.scorer import Scorer, adopt_scorer
from tests.cuda.operations import DeviceLog

SHAPE = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1000, "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "llama": lambda n, **k: LlamaConfig(num_hidden_layers=n, **SHAPE | k),
    "mistral": lambda n, **k: MistralConfig(num_hidden_layers=n, sliding_window=64, **SHAPE | k),
    "qwen2": lambda n, **k: Qwen2Config(num_hidden_layers=n, **SHAPE | k),
    "gemma2": lambda n, **k: Gemma2Config(num_hidden_layers=n, sliding_window=64, **SHAPE | k),
    "gemma3": lambda n, **k: Gemma3TextConfig(num_hidden_layers=n, sliding_window=64, **SHAPE | k),
}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, 16 pairs": {"pairs": 16},
    "full, checkpointing": {"checkpointing": True},
    "full, head in chunks": {"pairs": 16, "shape": {"vocab_size": 131_072}},
    "full, head in chunks, checkpointing": {
        "pairs": 16, "shape": {"vocab_size": 131_072}, "checkpointing": True,
    },
    "full, several tasks": {"categories": ("a", "b")},
    "full, half weights": {"half": True},
    "full, plain head": {"fused": False},
    "full, plain head in chunks": {
        "fused": False, "pairs": 16, "shape": {"vocab_size": 131_072},
    },
    "gemma2, plain head": {"model": "gemma2", "fused": False},
    "lora": {"lora": True},
    "lora, 16 pairs": {"lora": True, "pairs": 16},
    "lora, checkpointing": {"lora": True, "checkpointing": True},
    "lora, bf16 adapter": {"lora": True, "lora_dtype": "bfloat16"},
    "lora, head in chunks": {"lora": True, "pairs": 16, "shape": {"vocab_size": 131_072}},
    **{name: {"model": name} for name in MODELS if name != "llama"},
}  # fmt: skip


class FakeGpu(Hardware):
    """A GPU of 8 GiB, so that a chunk has 512 tokens at 131,072 words. fused: by the head's kernel.

    Triton cannot launch on tensors without data: one operation stands for each launch.
    """

    def __init__(self, fused: bool) -> None:
        self.fused = fused

    def memory(self, device: torch.device) -> int:
        return 2**33 if self.fused else 5 * 2**33  # a plain head takes five times as much a logit

    def fuses_head(self, *_: Any) -> bool:
        return self.fused

    def head_logps(self, logits: Any, targets: Any, finish: Finish) -> tuple[Any, Any]:
        sums = logits.new_empty(len(logits), 2, dtype=torch.float32)
        return logits.new_zeros(len(logits), dtype=torch.float32), sums

    def head_gradient(self, logits: Any, *_: Any) -> None:
        logits.zero_()


def policy(
    model: str, layers: int, lora: bool, half: bool, shape: dict[str, Any], lora_dtype: Any
) -> Any:
    """As training holds it: fp32 weights, or a bf16 base in an adapter. half: as DeepSpeed has it.

    Call it under ``FakeTensorMode``; the weights lie on cuda:0 and hold no data.
    """
    config = ORPOConfig(model=model, peft=lora, lora_dtype=lora_dtype)
    made = build(MODELS[model](layers, **shape), config, Method(lora), "bf16", None, half)
    with torch.device("cuda", 0):
        _off_meta(made)
    return made


def micro_batch(
    layers: int,
    model: str = "llama",
    lora: bool = False,
    half: bool = False,
    pairs: int = 4,
    checkpointing: bool = False,
    categories: tuple[str, ...] = (),
    packed: bool = True,
    fused: bool = True,
    shape: dict[str, Any] | None = None,
    lora_dtype: str = "float32",
) -> DeviceLog:
    """Collate, send, forward, loss, backward, metrics: what ``ORPOTrainer`` does a micro-batch."""
    batch_of = [Pair(*([7] * length for length in (60, 70, 80))) for _ in range(pairs)]
    scorer = Scorer(packed, varlen=packed, hardware=FakeGpu(fused))
    batch, ids = scorer.collate(batch_of), torch.zeros(pairs, dtype=torch.long)
    with FakeTensorMode(allow_non_fake_inputs=True):
        made = policy(model, layers, lora, half, shape or {}, lora_dtype)
        adopt_scorer(made, scorer)
        if checkpointing:
            _checkpoint(made)
        means = RunningMeans(categories)
        with DeviceLog() as log:
            log.phase = "send"
            batch = batch.to(torch.device("cuda", 0))
            log.phase = "forward"
            with torch.autocast("cuda", torch.bfloat16, enabled=not half):
                scores = scorer.score(made, batch)
            log.phase = "loss"
            loss, metrics = orpo_loss(scores, 0.1, "additive", 8, 400)
            log.phase = "backward"
            loss.backward()
            log.phase = "metrics"
            means.add(step_means(loss, metrics, 0.1, 8, 400), scores, ids)
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
    return log


def measure(**case: Any) -> dict[str, Any]:
    """A layer's share is what one layer more adds."""
    two, three = micro_batch(2, **case), micro_batch(3, **case)
    layer = three.operations - two.operations
    outside = {phase: two.operations[phase] - 2 * layer[phase] for phase in two.operations}
    return {
        "waits": dict(three.waits),
        "copies": sum(three.copies.values()),
        "operations_per_layer": {**layer, "total": layer.total()},
        "operations_outside_layers": {**outside, "total": sum(outside.values())},
    }


def each_buffer_once(carry: Any) -> Any:
    """As in ``parcel``, which cannot make a fake tensor of a real storage: an empty one instead."""
    carried: dict[int, Any] = {}

    def move(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in carried:
            carried[storage._cdata] = carry(torch.empty(storage.nbytes(), dtype=torch.uint8))
        place = int(tensor.storage_offset()) * tensor.element_size()
        return parcel._view(carried[storage._cdata], place, tensor.dtype, tensor.shape)

    return move


def case(name: str) -> dict[str, Any]:
    return measure(**CASES[name])


def main() -> None:
    with (
        mock.patch.object(parcel, "_each_buffer_once", each_buffer_once),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(FakeTensorMode, "avoid_device_init", True),
        mock.patch.object(fake_tensor, "init_gpu_context", lambda device: None),
        mock.patch.object(torch.cuda, "is_bf16_supported", lambda *_: True),
        sdpa_kernel(SDPBackend.MATH),  # the others ask for the device's generation
    ):
        names = sys.argv[1:] or list(CASES)
        # A process each: some dozens of fake modes in one end in a corrupted heap now and then,
        # none of the cases does by itself (glibc's checking allocator found nothing either).
        with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
            found = dict(zip(names, pool.imap(case, names), strict=True))
    print(json.dumps({"torch": torch.__version__, "cases": found}, indent=2))


if __name__ == "__main__":
    main()
