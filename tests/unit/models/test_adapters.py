"""A LoRA run is a model like any other: training goes on with its adapter."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from orpo_dist import ORPOConfig, ORPOTrainer, UserError, load, train
from orpo_dist.cli import main
from orpo_dist.config import load_config
from orpo_dist.generation.speakers import speakers
from orpo_dist.models.adapters import base_of, going_on
from orpo_dist.models.model import load_model_config, load_tokenizer
from orpo_dist.sweeps.running.shared import fetch_model, prepare_shared, refuse_unfit
from orpo_dist.sweeps.searched.files import load_sweep
from tests.conftest import DEMO

DATA = str(DEMO / "train.jsonl")
IDS = torch.tensor([[7, 8, 9, 10]])


def settings(model: Path | str, folder: Path, **changes: Any) -> ORPOConfig:
    values = {
        "model": str(model), "data_path": DATA, "project_name": str(folder), "max_steps": 2,
        "batch_size": 4, "gradient_accumulation": 1, "lr": 1e-3, "log": "none", "logging_steps": 1,
        "attention": "padded", "warmup_ratio": 0,
    }  # fmt: skip
    return ORPOConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def first(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run of rank 4."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    lora = {"peft": True, "lora_r": 4, "target_modules": "q_proj,v_proj"}
    train(settings(tiny_model_dir, folder, lr=1e-2, max_steps=6, **lora))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("lora", [{}, {"peft": True}, {"peft": True, "lora_r": 4}])
def test_training_goes_on_with_the_adapter(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, lora: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO, "orpo_dist")
    before = load_file(first / "adapter_model.safetensors")
    handle = train(settings(first, tmp_path / "second", lr=1e-9, **lora))
    assert caplog.text.count("training goes on with it") == 1
    torch.testing.assert_close(logits(handle.model), logits(load(first).model))
    assert base_of(tmp_path / "second") == base_of(first)
    after = load_file(tmp_path / "second" / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    written = load_config(tmp_path / "second" / "config.yaml")
    assert (written.peft, written.lora_r, written.lora_alpha) == (True, 4, 32)
    assert written.target_modules == "q_proj,v_proj"


def test_a_run_of_a_run_of_a_run_loads_in_plain_transformers(first: Path, tmp_path: Path) -> None:
    train(settings(first, tmp_path / "second", lr=1e-2))
    handle = train(settings(tmp_path / "second", tmp_path / "third", lr=1e-2))
    assert not torch.allclose(logits(handle.model), logits(load(first).model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "third")
    torch.testing.assert_close(logits(plain), logits(handle.model))
    before = speakers(str(tmp_path / "third"), "base")[0]  # what it went on from, not its base
    torch.testing.assert_close(logits(before.handle.model), logits(load(tmp_path / "second").model))


def test_going_on_in_a_run_of_stages_merged_at_the_end(first: Path, tmp_path: Path) -> None:
    stages = [{"max_steps": 1}, {"max_steps": 1}]
    lora = {"peft": True, "merge_adapter": True}
    handle = train(settings(first, tmp_path / "run", stages=stages, **lora))
    assert not (tmp_path / "run" / "adapter_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(logits(plain), logits(handle.model))


def test_going_on_from_python_and_by_margins(first: Path, tmp_path: Path) -> None:
    config = settings(first, tmp_path / "run", curriculum="margin", max_steps=1)
    train(config)
    args = settings(first, tmp_path / "trainer").replace(model=None, data_path=[])
    rows = [json.loads(line) for line in Path(DATA).read_text("utf-8").splitlines()[:8]]
    trainer = ORPOTrainer(model=str(first), args=args, train_dataset=rows)
    assert trainer.config.lora_r == 4
    torch.testing.assert_close(logits(trainer.model), logits(load(first).model))


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_going_on_on_a_quantised_base(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, quantization: str
) -> None:
    pytest.importorskip("bitsandbytes")
    quantised = {"peft": True, "quantization": quantization}
    train(settings(first, tmp_path / "second", **quantised))
    assert "goes on on one in" not in caplog.text
    train(settings(tmp_path / "second", tmp_path / "third"))
    assert f"was trained on a base in {quantization}" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [{"lora_r": 8}, {"lora_alpha": 64}, {"target_modules": "q_proj"}, {"use_dora": True},
     {"lora_dropout": 0.1}],
)  # fmt: skip
def test_settings_of_another_adapter_are_refused(first: Path, changes: dict[str, Any]) -> None:
    name = next(iter(changes))
    with pytest.raises(UserError, match=f"^{name} .*goes on with that adapter"):
        going_on(settings(first, Path("run"), peft=True, **changes))


def test_the_same_modules_in_another_order_are_the_same(first: Path) -> None:
    config = settings(first, Path("run"), peft=True, target_modules="v_proj, q_proj")
    assert going_on(config).target_modules == "q_proj,v_proj"


def test_plan_and_evaluate_take_an_adapter(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", "--model", str(first), "--gpus", "0", "--host-memory", "8", "--asked-only"]
    assert main([*plan, "--data-path", DATA]) == 0
    assert "LoRA" in capsys.readouterr().out
    assert main(["evaluate", str(first), "--data-path", str(DEMO / "eval.jsonl")]) == 0


def test_a_sweep_takes_an_adapter(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orpo_dist")
    base = {"model": str(first), "data_path": DATA, "valid_data_path": str(DEMO / "eval.jsonl")}
    sweep = load_sweep({"space": {"orpo_alpha": {"grid": [0, 1]}}, "base": base})
    refuse_unfit(sweep)
    prepare_shared(sweep)
    assert "192 pairs, 64 held out" in caplog.text


@pytest.fixture
def alone(first: Path, tmp_path: Path) -> Path:
    """An adapter as PEFT saves it, without a tokenizer."""
    folder = tmp_path / "alone"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(first / name, folder)
    return folder


def with_base(adapter: Path, **changes: Any) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return adapter


def test_an_adapter_alone_has_the_tokenizer_of_its_base(
    alone: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = settings(alone, tmp_path / "run")
    assert (
        load_tokenizer(str(alone), config).get_vocab()
        == load_tokenizer(str(tiny_model_dir), config).get_vocab()
    )
    assert load_model_config(str(alone), config).model_type == "llama"
    train(config.replace(max_steps=1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model_name_or_path": "/gone/base"}, "an adapter of /gone/base, which is not there"),
        ({"base_model_name_or_path": None}, "does not say in base_model_name_or_path"),
        ({"peft_type": "IA3"}, "kind IA3; only LoRA adapters"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_in_one_sentence(
    alone: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        train(settings(with_base(alone, **changes), tmp_path / "run"))


def test_a_base_on_the_hub_is_loaded_by_its_id_and_revision(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, LlamaConfig

    asked: dict[str, Any] = {}

    def read(**options: Any) -> LlamaConfig:
        asked.update(options)
        return LlamaConfig()

    monkeypatch.setattr(AutoConfig, "from_pretrained", read)
    with_base(alone, base_model_name_or_path="org/base", revision="v1")
    config = settings(alone, tmp_path / "run")
    load_model_config(str(alone), config)
    assert asked["pretrained_model_name_or_path"] == "org/base"
    assert asked["revision"] == "v1"
    fetched: list[Any] = []
    monkeypatch.setattr(
        "orpo_dist.sweeps.running.shared.snapshot_download", lambda *a, **k: fetched.append((a, k))
    )
    fetch_model(config)
    assert fetched[0][0] == ("org/base",)
    assert fetched[0][1]["revision"] == "v1"


def test_a_run_does_not_replace_the_model_that_it_begins_with(first: Path) -> None:
    with pytest.raises(UserError, match="is the folder of the model to begin with"):
        train(settings(first, first, overwrite=True))
    assert (first / "adapter_model.safetensors").exists()


def test_dora_is_saved_so_that_transformers_and_peft_load_it(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    dora = {"peft": True, "use_dora": True, "lora_r": 4, "lr": 1e-2}
    handle = train(settings(tiny_model_dir, tmp_path / "run", save_strategy="epoch", **dora))
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
        for loader in (AutoModelForCausalLM, AutoPeftModelForCausalLM):
            model = loader.from_pretrained(folder)
            torch.testing.assert_close(logits(model), logits(handle.model))
    again = settings(tiny_model_dir, tmp_path / "run", resume_from_checkpoint="auto", **dora)
    resumed = train(again.replace(max_steps=3, lr=1e-9))
    torch.testing.assert_close(logits(resumed.model), logits(handle.model))


def test_another_kind_of_adapter_from_python_is_saved(tiny_model: Any, tmp_path: Path) -> None:
    from peft import IA3Config

    ia3 = IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    args = settings("none", tmp_path).replace(model=None, data_path=[], max_steps=1)
    rows = [json.loads(line) for line in Path(DATA).read_text("utf-8").splitlines()[:8]]
    tokenizer = load_tokenizer(tiny_model.config._name_or_path, args)
    trainer = ORPOTrainer(tiny_model, args, rows, processing_class=tokenizer, peft_config=ia3)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "generation_config.json").exists()
    with pytest.raises(UserError, match="kind IA3"):
        going_on(settings(tmp_path / "saved", tmp_path / "run"))


def test_an_adapter_in_bf16_trains_and_goes_on(
    tiny_model_dir: Path, tmp_path: Path, demo_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights and their moments; the losses are those in fp32 but for the rounding."""
    caplog.set_level(logging.INFO, "orpo_dist")
    found, held = {}, {}
    for dtype in ("float32", "bfloat16"):
        config = settings(
            tiny_model_dir, tmp_path / dtype, mixed_precision="bf16", lora_dtype=dtype, max_steps=4,
            save_strategy="steps", save_steps=2, lr=1e-2, peft=True,
        )  # fmt: skip
        trainer = ORPOTrainer(args=config, train_dataset=demo_rows[:20])
        trainer.train()
        training = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        moments = [v for s in trainer.optimizer.state.values() for v in s.values() if v.dim()]
        held[dtype] = {p.dtype for p in [*training.values(), *moments]}
        found[dtype] = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert held == {"float32": {torch.float32}, "bfloat16": {torch.bfloat16}}
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.02)
    assert found["bfloat16"] != found["float32"]
    assert "lora_dtype bfloat16: " in caplog.text
    again = ORPOTrainer(args=config, train_dataset=demo_rows[:20])
    again.train(resume_from_checkpoint=tmp_path / "bfloat16" / "checkpoint-2")
    logged = [e["loss"] for e in again.state.log_history if "loss" in e]
    assert logged[-2:] == found["bfloat16"][-2:]


def test_an_adapter_in_bf16_needs_bf16_around_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = settings(tiny_model_dir, tmp_path, lora_dtype="bfloat16", peft=True)
    with pytest.raises(UserError, match="lora_dtype bfloat16 needs mixed_precision bf16, and it"):
        train(config)
