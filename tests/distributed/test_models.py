"""Models that come out of several processes: merged, quantised, best, evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from orpo_dist.checkpoints.checkpoint import saved_shapes
from orpo_dist.cli import main
from tests.conftest import DEMO
from tests.families import small_config
from tests.launching import assert_engine, curve, in_one_launch, launched, run, training

SHORT = ("--max-steps", "4", "--lr", "1e-2", "--peft")


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_int4_base_under_sharded_weights(engine: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The same training as on one process, from the same NF4 weights."""
    flags = (*SHORT, "--quantization", "int4")
    run(launched(engine) + training(tiny_model_dir, tmp_path / "many", *flags))
    assert_engine(tmp_path / "many", engine, 2)
    assert main(training(tiny_model_dir, tmp_path / "one", *flags)) == 0
    assert curve(tmp_path / "many") == pytest.approx(curve(tmp_path / "one"), rel=1e-3)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "many")
    assert all(p.numel() for p in model.parameters())


def test_zero3_merges_the_best_dora_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    """DoRA reads base weights past their module, and merging needs them whole."""
    flags = (*SHORT, "--use-dora", "--merge-adapter", "--valid-data-path")
    best = ("--load-best-model-at-end", "--eval-strategy", "steps", "--eval-steps", "2")
    flags = (*flags, str(DEMO / "eval.jsonl"), *best)
    run(launched("zero3") + training(tiny_model_dir, tmp_path / "many", *flags, "--save-steps",
        "2", "--save-strategy", "steps"))  # fmt: skip
    assert main(training(tiny_model_dir, tmp_path / "one", *flags, "--save-steps", "2",
        "--save-strategy", "steps")) == 0  # fmt: skip
    merged, theirs = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("many", "one")
    )
    before = load_file(tiny_model_dir / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (merged[name] - before[name]).abs().max() > 1e-3
    for name, tensor in theirs.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-4, rtol=0)
    assert not list((tmp_path / "many").glob("adapter_*"))


def test_evaluation_is_the_same_on_two_processes(tiny_model_dir: Path, tmp_path: Path) -> None:
    """To the last digit: micro-batches do not depend on who computes them."""
    words = ["evaluate", str(tiny_model_dir), "--data-path", str(DEMO / "eval.jsonl")]
    words += ["--text", str(DEMO / "eval.jsonl"), "--batch-size", "3", "--json"]
    for preset in ("single", "ddp"):
        run([*launched(preset), *words, str(tmp_path / f"{preset}.json")])
    one, two = (json.loads((tmp_path / f"{p}.json").read_text()) for p in ("single", "ddp"))
    assert one["pairs"] == 64 and one["texts"][0]["tokens"] > 1000
    assert one == two


def test_ensembles_are_the_same_on_two_processes(adapter_dirs: list[Path], tmp_path: Path) -> None:
    words = ["ensemble", "evaluate", *map(str, adapter_dirs), "--data-path"]
    words += [str(DEMO / "eval.jsonl"), "--json"]
    for preset in ("single", "ddp"):
        run([*launched(preset), *words, str(tmp_path / f"{preset}.json")])
    one, two = (json.loads((tmp_path / f"{p}.json").read_text()) for p in ("single", "ddp"))
    assert len(one["models"]) == 5
    assert one == two


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_tied_weights_are_written_once(
    engine: str, kind_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """And the trained end is saved, also of an adapter that the next run goes on with."""
    base, whole, lora, more = kind_dir("qwen-base"), *(tmp_path / n for n in ("whole", "b", "c"))
    data = {
        "data_path": str(DEMO / "train.jsonl"), "batch_size": 2, "global_batch_size": 8,
        "max_steps": 2, "logging_steps": 1, "log": "none", "save_strategy": "no",
    }  # fmt: skip
    dora = {"peft": True, "use_dora": True, "lora_r": 4, "max_steps": 4, "lr": 1e-2}
    jobs = [
        {**data, "model": str(base), "project_name": str(whole)},
        {**data, **dora, "model": str(whole), "project_name": str(lora)},
        {**data, "model": str(lora), "project_name": str(more)},
    ]
    in_one_launch(engine, 2, jobs, tmp_path)
    assert saved_shapes(whole) == saved_shapes(base)
    for folder in (whole, lora, more):
        settings = json.loads((folder / "generation_config.json").read_text())
        assert settings["eos_token_id"] == [500, 502]
        assert (folder / "README.md").exists()
    model = AutoModelForCausalLM.from_pretrained(more)
    ids = torch.tensor([[7, 8, 9]])
    theirs = AutoPeftModelForCausalLM.from_pretrained(more)
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("engine", ["fsdp2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_a_router_loss_is_the_same_on_two_processes(
    engine: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Ranks and micro-batches share out pairs, and the loss is of pairs."""
    model = tmp_path / "model"
    words = AutoTokenizer.from_pretrained(tiny_model_dir)
    words.save_pretrained(model)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(small_config("qwen3_moe", vocab_size=len(words)))
    made.save_pretrained(model)
    flags = ("--max-steps", "3", "--router-aux-loss-coef", "0.5", "--lr", "1e-3")
    run(launched(engine) + training(model, tmp_path / "many", *flags))
    assert_engine(tmp_path / "many", engine, 2)
    assert main(training(model, tmp_path / "one", *flags)) == 0
    many, one = (router_losses(tmp_path / name) for name in ("many", "one"))
    assert len(one) == 3 and many == pytest.approx(one, rel=1e-5)
    assert curve(tmp_path / "many") == pytest.approx(curve(tmp_path / "one"), rel=1e-4)


def router_losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss/router"] for line in lines if "loss/router" in line]
