"""``orpo-dist plan``: named answers, the trace against real runs, and the arithmetic by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_dist import cli
from orpo_dist.base.exits import EXIT_DOES_NOT_FIT
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.engine import Engine, reduces_once
from orpo_dist.planning.census import take_census
from orpo_dist.planning.estimate import Estimator, Machine
from orpo_dist.planning.memory import Part, Setting, parts
from orpo_dist.planning.skeleton import Method
from orpo_dist.planning.speed import sent_bytes

MODELS = Path(__file__).parent / "models"
GIB = 2**30


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


# --- the named answers


def test_7b_full_on_eight_gpus_of_80(capsys: Any, tmp_path: Path) -> None:
    printed, found = plan(
        capsys, tmp_path, "--model", str(MODELS / "llama-2-7b"), "--gpus", "8",
        "--gpu-memory", "80", "--max-completion-length", "512", "--pairs", "60000",
        "--asked-only",
    )  # fmt: skip
    chosen = found["chosen"]
    assert (chosen["method"], chosen["preset"]) == ("full", "zero1")
    candidates = by_preset(found, "full", True)
    assert not candidates["ddp"]["fits"]  # 16 B a parameter, and 4 for its buckets
    assert candidates["ddp"]["device_gib"] > 6.7e9 * 20 / GIB
    assert all(candidates[name]["fits"] for name in ("zero1", "zero2", "zero3", "fsdp2"))
    assert weights_of(chosen) == 2 * 6_738_415_616  # the parameters of Llama-2-7B
    assert "orpo-dist launch zero1 --num-processes 8 -- train" in printed
    assert "6.74B × 12 B / 8" in printed
    assert "1,407 steps" in printed  # 3 epochs of 60 000 pairs, 128 a step


def test_7b_qlora_on_one_gpu_of_24(capsys: Any, tmp_path: Path) -> None:
    words = ["--model", str(MODELS / "llama-2-7b"), "--gpus", "1", "--gpu-memory", "24"]
    words += ["--max-completion-length", "512"]
    words += ["--peft", "--quantization", "int4", "--gradient-checkpointing", "--asked-only"]
    printed, found = plan(capsys, tmp_path, *words)
    chosen = found["chosen"]
    assert (chosen["method"], chosen["preset"]) == ("LoRA int4", "single")
    # 32 layers of 4 × 4096² + 3 × 4096 × 11008 in 4.127 bits; embeddings and head in bf16
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert weights_of(chosen) / GIB == pytest.approx(
        (linear * 0.5159 + 2 * 32000 * 4096 * 2 + 40e6 * 4) / GIB, rel=0.01
    )
    assert "\norpo-dist train --model" in printed
    assert "--quantization int4" in printed


def test_70b_lora_on_eight_gpus_of_80(capsys: Any, tmp_path: Path) -> None:
    words = ["--model", str(MODELS / "llama-3-70b"), "--gpus", "8", "--gpu-memory", "80"]
    words += ["--max-completion-length", "512", "--gradient-checkpointing", "--asked-only"]
    _, found = plan(capsys, tmp_path, *words, "--peft")
    assert found["chosen"]["preset"] in ("fsdp2", "zero3")  # 141 GB of weights must be shared out
    candidates = by_preset(found, "LoRA", True)
    assert not any(candidates[name]["fits"] for name in ("ddp", "zero1", "zero2"))
    assert weights_of(found["chosen"]) / GIB == pytest.approx(70.55e9 * 2 / 8 / GIB, rel=0.02)
    _, found = plan(capsys, tmp_path, *words, "--peft", "--quantization", "int4")
    assert found["chosen"]["preset"] == "ddp"


def test_other_methods_are_listed_and_what_cannot_be_is_refused(
    capsys: Any, tmp_path: Path
) -> None:
    printed, found = plan(
        capsys, tmp_path, "--model", str(MODELS / "smollm2-135m"), "--gpus", "2",
        "--gpu-memory", "8", "--max-completion-length", "64", "--gradient-checkpointing", "--all",
    )  # fmt: skip
    refused = by_preset(found, "LoRA int8", True)["zero3"]
    assert "cannot shard int8" in refused["why_not"]
    assert not refused["fits"]
    assert {c["method"] for c in found["candidates"]} == {"full", "LoRA", "LoRA int8", "LoRA int4"}
    assert "other methods, each at its fastest:\n  LoRA       ddp" in printed


def test_135m_on_a_laptop(capsys: Any, tmp_path: Path) -> None:
    printed, found = plan(
        capsys, tmp_path, "--model", str(MODELS / "smollm2-135m"), "--gpus", "0",
        "--host-memory", "16", "--max-completion-length", "256", "--asked-only",
    )  # fmt: skip
    chosen = found["chosen"]
    assert (chosen["method"], chosen["preset"], chosen["checkpointing"]) == (
        "full",
        "single",
        False,
    )
    assert weights_of(chosen) == 4 * 134_515_008  # the parameters of SmolLM2-135M, fp32
    assert 2.5 < chosen["device_gib"] < 8
    assert "\norpo-dist train --model" in printed


def test_what_does_not_fit_ends_with_its_own_code(capsys: Any, tmp_path: Path) -> None:
    words = ["--model", str(MODELS / "llama-2-7b"), "--gpus", "1", "--max-completion-length", "64"]
    words += ["--gradient-checkpointing", "--batch-size", "1"]
    printed, found = plan(
        capsys, tmp_path, *words, "--gpu-memory", "24", "--host-memory", "64",
        code=EXIT_DOES_NOT_FIT,
    )  # fmt: skip
    assert "full training does not fit" in printed
    assert found["chosen"]["method"].startswith("LoRA")  # what would
    words += ["--host-memory", "64", "--asked-only", "--gpu-memory", "2"]
    printed, found = plan(capsys, tmp_path, *words, code=EXIT_DOES_NOT_FIT)
    assert found["chosen"] is None
    assert "orpo-dist train" not in printed


# --- the trace against the real thing


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_activations_are_those_of_a_real_step(
    peft: bool, checkpointing: bool, attention: str
) -> None:
    """Planned from two and three layers; allocated by five, counted by torch's own profiler."""
    hf_config = small_llama(5)
    lengths = (40, 30, 20)
    config = ORPOConfig(peft=peft, attention=attention)
    estimator = Estimator(hf_config, config, Machine(1, 16, gpu=False), lengths)
    planned = estimator.activations(Method(peft), False, checkpointing, 3)
    measured = really_allocated(hf_config, config, checkpointing, lengths, 3)
    assert planned == pytest.approx(measured, rel=0.05)


def small_llama(layers: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=600,
    )  # fmt: skip


def really_allocated(
    hf_config: Any, config: ORPOConfig, checkpointing: bool, lengths: Any, count: int
) -> float:
    """Peak bytes of one micro-batch beside weights and gradients, of real tensors."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import AutoModelForCausalLM

    from orpo_dist.base.types import Pair
    from orpo_dist.models.adapters import add_adapter, lora_config
    from orpo_dist.scoring.objective import orpo_loss
    from orpo_dist.scoring.scorer import make_scorer

    model = AutoModelForCausalLM.from_config(hf_config)
    if config.peft:
        model = add_adapter(model, lora_config(config))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    scorer = make_scorer(model, config.attention)
    pairs = [Pair(*(np.arange(3, 3 + n).tolist() for n in lengths)) for _ in range(count)]
    batch = scorer.collate(pairs)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss, _ = orpo_loss(scorer.score(model, batch), 1.0, "additive", count, count * lengths[1])
        loss.backward()
    live = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_one_more_layer_costs_what_the_third_does() -> None:
    """The whole model traced at once agrees with what two shallow ones foretell."""
    from orpo_dist.planning.trace import micro_batch_bytes

    hf_config = small_llama(9)
    for precision in ("none", "bf16"):
        for checkpointing in (False, True):
            config = ORPOConfig(mixed_precision=precision)
            estimator = Estimator(hf_config, config, Machine(8, 80), (40, 30, 20))
            whole = micro_batch_bytes(
                hf_config, config, Method(), precision, [(40, 30, 20)] * 4,
                checkpointing=checkpointing,
            )  # fmt: skip
            found = estimator.activations(Method(), False, checkpointing, 4)
            assert found == pytest.approx(max(whole), rel=0.02)


# --- the arithmetic

STATES = ("weights", "gradients", "optimizer")


def total(found: list[Part], *names: str) -> float:
    return sum(part.bytes for part in found if part.name in names)


def test_states_by_hand() -> None:
    """Bytes a parameter, as in the ZeRO paper (arXiv 1910.02054, 3) and docs/distributed.md."""
    census = take_census(small_llama(2), ORPOConfig(), Method(), "bf16")
    size = census.total

    def states(
        name: str, accumulates: bool = True, offload: str = "none", reduces_once: bool = True
    ) -> dict[str, float]:
        setting = Setting(Engine(name, offload), 4, accumulates, 0.0, reduces_once=reduces_once)
        found = parts(census, setting)
        return {
            where: total([p for p in found if p.where == where], *STATES) / size
            for where in ("device", "host")
        }  # fmt: skip

    assert states("single")["device"] == 4 + 4 + 8
    assert states("ddp")["device"] == 4 + 4 + 8
    assert states("zero1")["device"] == 2 + 2 + 12 / 4
    assert states("zero2")["device"] == 2 + (4 + 12) / 4
    assert states("zero3")["device"] == (2 + 4 + 12) / 4
    assert states("fsdp2", accumulates=False)["device"] == (4 + 4 + 8) / 4
    assert states("fsdp2")["device"] == (4 + 4 + 8) / 4 + 4  # gradients wait unsharded
    assert states("fsdp2", reduces_once=False) == states("fsdp2", accumulates=False)
    assert states("zero2", offload="cpu") == {"device": 2, "host": 16 / 4}
    assert states("zero3", offload="cpu") == {"device": 0, "host": (16 + 2) / 4}


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


def test_gradients_of_large_models_do_not_wait_whole(capsys: Any, tmp_path: Path) -> None:
    """70B in fp32 would take 263 GiB on every GPU, as long as a step has micro-batches to come."""
    words = ["--gpus", "64", "--max-completion-length", "512", "--gradient-checkpointing"]
    words += ["--batch-size", "4", "--gradient-accumulation", "4", "--asked-only"]
    words += ["--max-tokens-per-microbatch", "none"]
    for model, memory, whole in (("llama-3-70b", "80", False), ("smollm2-135m", "24", True)):
        _, found = plan(
            capsys, tmp_path, "--model", str(MODELS / model), "--gpu-memory", memory, *words
        )
        chosen = by_preset(found, "full", True)["fsdp2"]
        parameters = weights_of(chosen) * 64 / 4
        assert sum(p["bytes"] for p in chosen["parts"] if p["name"] == "gradients") == (
            pytest.approx(4 * parameters * (1 / 64 + whole))
        )
        micro_batches = chosen["micro_batches"]
        assert micro_batches > 1 and chosen["fits"]
        assert chosen["time"]["sent_gb"] * 64 / 63 * 1e9 == pytest.approx(
            parameters * (4 * micro_batches + 4 * (1 if whole else micro_batches))
        )


def test_census_of_qlora() -> None:
    config = ORPOConfig(peft=True, quantization="int4")
    census = take_census(small_llama(2), config, Method(True, "int4"), "bf16")
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 192)
    rank_16 = 2 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 192))
    assert census.quantised == linear
    assert census.trains == rank_16
    assert census.frozen == linear + 2 * 600 * 64 + 5 * 64


# --- what is printed and written


def test_launch_line_and_batch_script_say_what_was_planned(capsys: Any, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    printed, found = plan(
        capsys, tmp_path, "--model", str(MODELS / "llama-2-7b"), "--gpus", "16",
        "--gpu-memory", "80", "--max-completion-length", "512", "--lr", "5e-6",
        "--batch-size", "16", "--pairs", "1000", "--sbatch", str(script), "--asked-only",
        "--max-tokens-per-microbatch", "none",
    )  # fmt: skip
    chosen = found["chosen"]
    assert chosen["pairs"] < 16  # what fits, which the line must say
    assert f"--max-tokens-per-microbatch {chosen['tokens']}" in printed
    assert "--num-processes 16 --num-machines 2 --machine-rank RANK" in printed
    text = script.read_text(encoding="utf-8")
    assert "#SBATCH --nodes=2\n" in text
    assert f"ORPO_PRESET:-{chosen['preset']}}}" in text
    shown = subprocess.run(
        [str(shutil.which("bash")), str(script), "--dry-run"],
        check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **python_here()},
    ).stdout  # fmt: skip
    assert "orpo_dist.launch.accelerate launch" in shown
    assert "--lr 5e-6" in shown


def python_here() -> dict[str, str]:
    import sys

    return {"ORPO_PYTHON": sys.executable, "PYTHONPATH": str(Path(__file__).parents[3])}


def test_data_of_the_run_are_counted(capsys: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [{"prompt": "Say hi", "chosen": "hello " * n, "rejected": "no"} for n in range(1, 41)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    printed, _ = plan(
        capsys, tmp_path, "--model", str(tiny_model_dir), "--data-path", str(path), "--gpus", "0",
        "--host-memory", "8", "--global-batch-size", "8", "--tokens-per-second", "1000",
    )  # fmt: skip
    assert "the run: 15 steps" in printed  # 3 epochs of 40 pairs, 8 a step
    assert "1000 tokens/s a process, as stated" in printed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "nothing to plan"),
        (["--model", "MODEL", "--gpu-memory", "80"], "how many GPUs"),
        (["--model", "MODEL", "--gpus", "8"], "--gpu-memory is missing"),
        (["--model", "MODEL", "--gpus", "-1"], "must be 0"),
        (["--model", "MODEL", "--gpus", "1", "--gpu-memory", "0"], "must be above 0"),
        (
            ["--model", "MODEL", "--gpus", "1", "--gpu-memory", "9", "--gpu-type", "Z9"],
            "data sheet",
        ),
        (["--model", "MODEL", "--gpus", "0", "--from-run", "nowhere"], "no tokens_per_second"),
        (["--model", "MODEL", "--gpus", "0", "--json", "no/such/x.json"], "does not exist"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], complaint: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = [str(MODELS / "smollm2-135m") if word == "MODEL" else word for word in words]
    assert cli.main(["plan", *words]) == 2
    errors = capsys.readouterr().err
    assert complaint in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("model", "preset", "gpus", "memory", "flags"),
    [
        ("llama-2-7b", "zero3", 8, 80, []),
        ("llama-2-7b", "fsdp2", 8, 80, ["--gradient-checkpointing"]),
        ("llama-2-7b", "zero2", 2, 24, ["--peft", "--quantization", "int4"]),
    ],
)
def test_sharded_runs_choose_what_was_planned(
    model: str, preset: str, gpus: int, memory: float, flags: list[str], capsys: Any, tmp_path: Path
) -> None:
    """The budget of a run under ZeRO or FSDP is that of the plan, to the token."""
    from transformers import AutoConfig

    from orpo_dist import ORPOConfig
    from orpo_dist.batching.steps import StepPlan
    from orpo_dist.launch import presets
    from orpo_dist.planning.budget import _budget
    from orpo_dist.planning.estimate import Machine

    words = ["--model", str(MODELS / model), "--gpus", str(gpus), "--gpu-memory", str(memory)]
    words += ["--max-completion-length", "512", "--asked-only", *flags]
    _, found = plan(capsys, tmp_path, *words)
    candidate = next(
        c for c in found["candidates"]
        if c["preset"] == preset and c["checkpointing"] == ("--gradient-checkpointing" in flags)
    )  # fmt: skip
    config = ORPOConfig(
        peft="--peft" in flags,
        quantization="int4" if "int4" in flags else None,
        gradient_checkpointing="--gradient-checkpointing" in flags,
    )
    lengths = np.array([[128, 512, 512]] * 16 * gpus)
    step = StepPlan(lengths, lengths[:, 1], global_batch=16 * gpus, micro_batch=16, world_size=gpus)
    hf_config = AutoConfig.from_pretrained(MODELS / model)
    engine = presets.find(preset).engine
    assert _budget(hf_config, config, step, engine, Machine(gpus, memory)) == candidate["tokens"]
