"""Rates, padding avoided, and the arithmetic behind MFU."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3Config,
    RwkvConfig,
)

from orpo_dist.batching.steps import Work
from orpo_dist.engines.peaks import PEAKS, peak_of
from orpo_dist.models.flops import ModelFlops, model_flops
from orpo_dist.planning.speed import USUAL
from orpo_dist.training.throughput import Throughput, peak_flops


def llama(tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_torch_counts(tied: bool) -> None:
    """torch's own counter over forward and backward of a sequence whose logits are all scored."""
    from torch.utils.flop_counter import FlopCounterMode

    model = llama(tied)
    model.set_attn_implementation("eager")
    tokens = 24
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(tokens)[None]).logits.sum().backward()
    flops = model_flops(model)
    assert flops is not None
    # Eager attention computes the masked half as well.
    work = Work(tokens=tokens, scored=tokens, padded=tokens, seen=tokens**2)
    assert flops(work) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    model = llama(tied=True)
    work = Work(tokens=10, scored=10, padded=40)
    full = model_flops(model)
    model.requires_grad_(False)
    frozen = model_flops(model)
    assert full is not None and frozen is not None
    assert frozen(work) / full(work) == pytest.approx(4 / 6)


def test_rates_of_an_interval() -> None:
    flops = ModelFlops(1000, 0, 1000, 0, 0, 0)
    clock: Any = Throughput(flops, peak=1e9)
    assert clock.pop() == {}
    for _ in range(2):
        clock.on_step_begin(None, None, None)
        time.sleep(0.02)
        clock.add(Work(tokens=50, scored=20, padded=200), pairs=4)
        clock.on_step_end(None, None, None)
        time.sleep(0.05)  # an evaluation: not a step's time
    found = clock.pop()
    assert 0.02 <= found["seconds_per_step"] < 0.05
    assert found["pairs_per_second"] == pytest.approx(4 / found["seconds_per_step"])
    assert found["tokens_per_second"] == pytest.approx(50 / found["seconds_per_step"])
    assert found["padding_avoided"] == 0.75
    assert found["mfu"] == pytest.approx(6000 * found["tokens_per_second"] / 1e9)
    assert clock.pop() == {}


def test_no_peak_is_claimed_for_a_cpu() -> None:
    assert peak_flops(torch.device("cpu"), bf16=True) is None


# --- what cannot be known stops nothing


def families() -> dict[str, PretrainedConfig]:
    small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {**small, "num_attention_heads": 4, "intermediate_size": 48}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return {
        "wide heads": Qwen3Config(**heads, num_key_value_heads=2, head_dim=16),
        "other names": GPT2Config(vocab_size=100, **gpt2),
        "fused": GPTNeoXConfig(**heads),
        "half convolutions": Lfm2Config(
            **heads, num_key_value_heads=2, layer_types=["conv", "full_attention"]
        ),
        "no attention": MambaConfig(**small),
        "no heads": RwkvConfig(**small),
        "experts": MixtralConfig(**heads, num_local_experts=4, num_key_value_heads=2),
    }


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("wide heads", (2, 64)), ("other names", (2, 32)), ("fused", (2, 32)),
        ("half convolutions", (1, 32)), ("no attention", None), ("no heads", None),
        ("experts", (2, 32)),
    ],
)  # fmt: skip
def test_attention_is_read_off_the_modules(family: str, attention: tuple[int, int] | None) -> None:
    with torch.device("meta"):
        flops = model_flops(AutoModelForCausalLM.from_config(families()[family]))
    assert (flops and (flops.layers, flops.width)) == attention


def test_layers_that_differ_are_counted_one_by_one() -> None:
    """As in models whose config lists the heads of every layer."""
    model = llama(tied=True)
    model.model.layers[0].self_attn.o_proj = torch.nn.Linear(8, 32)
    model.config.__dict__["num_attention_heads"] = [1, 4, 4]  # transformers would check it
    flops = model_flops(model)
    assert flops is not None and flops.layers * flops.width == 8 + 32 + 32
    for layer in model.model.layers:
        layer.self_attn.output = layer.self_attn._modules.pop("o_proj")
    assert model_flops(model) is None


def test_a_model_that_answers_nothing_has_no_figure() -> None:
    assert model_flops(torch.nn.Linear(2, 2)) is None


# --- peaks


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L40", 181), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-PCIE-40GB", 312), ("NVIDIA A800-SXM4-80GB", 312), ("NVIDIA A40", 149.7),
        ("NVIDIA A30", 165), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989), ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989), ("NVIDIA H20", 148), ("NVIDIA H800", 989),
        ("NVIDIA B200", 2250), ("NVIDIA B300 SXM6 AC", 2250), ("NVIDIA GB200", 2500),
        ("NVIDIA RTX A6000", 154.8), ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8),
        ("NVIDIA GeForce RTX 5090", 209.5), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4080", 97.5), ("NVIDIA GeForce RTX 3090", 71.2),
        ("NVIDIA GeForce RTX 3090 Ti", 80), ("h100", 989),
        # other chips, parts of one, and what no data sheet tells
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None), ("NVIDIA GeForce RTX 5090 D", None),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", None),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None), ("NVIDIA H800 NVL", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA A40-8Q", None),
        ("Quadro RTX 6000", None), ("Tesla T4", None), ("NVIDIA GB10", None), ("Z9", None),
    ],
)  # fmt: skip
def test_peaks_go_by_the_whole_name_of_a_device(name: str, peak: float | None) -> None:
    assert peak_of(name) == (peak and pytest.approx(peak * 1e12))


def test_the_gpus_that_a_plan_assumes_have_a_peak() -> None:
    assert all(peak_of(name) == PEAKS[name] for name in [*PEAKS, *USUAL.values()])


# --- the GPU's clock


def test_a_gpu_is_clocked_where_it_is_and_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that is given steps in no time and takes 100 ms for each; 1 s passes in between."""
    waits: list[float] = []
    queue = iter([0.0, 100.0, 1100.0, 1200.0, 2200.0, 2300.0])

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.at = next(queue)

        def synchronize(self) -> None:
            waits.append(self.at)

        def elapsed_time(self, other: Event) -> float:
            assert waits and other.at <= waits[-1], "read before it is known"
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock: Any = Throughput(ModelFlops(1000, 0, 1000, 0, 0, 0), 1e9, torch.device("cuda"))
    assert clock.pop() == {} and not waits
    for _ in range(3):
        clock.on_step_begin(None, None, None)
        clock.add(Work(tokens=50, scored=20, padded=200), pairs=4)
        clock.on_step_end(None, None, None)
    assert not waits
    found = clock.pop()
    assert waits == [2300.0]
    assert found["seconds_per_step"] == pytest.approx(0.1)
    assert found["tokens_per_second"] == pytest.approx(500)
    assert found["mfu"] == pytest.approx(6000 * 500 / 1e9)
    assert clock.pop() == {} and len(waits) == 1
