"""Merging an adapter at the end of a run: whole at every instant, no second model on the way."""

from __future__ import annotations

import logging
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from orpo_dist import ORPOConfig, UserError, load, train
from orpo_dist.runs.folder import MERGING, read_json
from orpo_dist.training import merging, stage
from orpo_dist.training.merging import merge_in_place
from tests.conftest import DEMO

IDS = torch.tensor([[7, 8, 9, 10]])


class Killed(BaseException):
    """Stands for a signal: nothing of ours catches it."""


@pytest.fixture
def adapter(adapter_dirs: list[Path], tmp_path: Path) -> Path:
    return shutil.copytree(adapter_dirs[0], tmp_path / "adapter")


def settings(model: Path, folder: Path, **changes: Any) -> ORPOConfig:
    values = {
        "model": str(model), "data_path": str(DEMO / "train.jsonl"), "project_name": str(folder),
        "max_steps": 2, "batch_size": 4, "gradient_accumulation": 1, "lr": 1e-2, "peft": True,
        "log": "none", "merge_adapter": True,
    }  # fmt: skip
    return ORPOConfig(**{**values, **changes})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def steps_of_a_merge(adapter: Path, monkeypatch: pytest.MonkeyPatch, until: int) -> bool:
    """Merge, killed before the ``until``-th change of the run folder; whether it was killed."""
    done = 0

    def counted(real: Any) -> Any:
        def call(self: Path, *args: Any, **options: Any) -> Any:
            nonlocal done
            if self.suffix in (".json", ".safetensors"):
                done += 1
                if done == until:
                    raise Killed
            return real(self, *args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill cleans nothing up
        try:
            merge_in_place(adapter, ORPOConfig())
        except Killed:
            return True
    return False


def test_killed_at_any_step_the_folder_loads_and_answers_the_same(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By us and by transformers, which lays an adapter also over what it is merged into."""
    wanted = logits(load(adapter).model)
    for until in range(1, 20):
        folder = shutil.copytree(adapter, adapter.with_name(f"killed-{until}"))
        killed = steps_of_a_merge(folder, monkeypatch, until)
        for model in (load(folder).model, AutoModelForCausalLM.from_pretrained(folder)):
            torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
        merge_again = (folder / "adapter_config.json").exists()
        if merge_again:
            merge_in_place(folder, ORPOConfig())
        torch.testing.assert_close(logits(load(folder).model), wanted, atol=1e-4, rtol=1e-4)
        if not killed:
            break
    else:
        raise AssertionError("never came to its end")
    assert until > 4
    assert sorted(file.name for file in folder.glob("*config*.json")) == [
        "config.json", "generation_config.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert not list(folder.glob("adapter_*"))
    assert "lora_alpha" not in read_json(folder / "config.json")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space left")]
)
def test_a_full_disk_leaves_the_adapter(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = {file.name: file.read_bytes() for file in adapter.iterdir()}

    def save(self: Any, folder: Path) -> None:
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    with pytest.raises(UserError, match=r"merge_adapter: .*[Nn]o space left.* is whole") as caught:
        merge_in_place(adapter, ORPOConfig())
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in adapter.iterdir()} == before


def test_a_damaged_merge_does_not_take_the_adapters_place(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LlamaForCausalLM.save_pretrained

    def save(self: Any, folder: Path) -> None:
        real(self, folder, state_dict=dict(list(self.state_dict().items())[:3]))

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    with pytest.raises(RuntimeError, match="numbers; missing"):
        merge_in_place(adapter, ORPOConfig())
    assert load(adapter).generate("Hi", max_new_tokens=2) is not None
    assert not (adapter / MERGING).exists()
    assert not (adapter / "model.safetensors").exists()


def test_nothing_of_the_training_lives_on_while_it_merges(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model and optimizer are gone before the merged one is opened, and that one is bf16."""
    held: list[weakref.ref[Any]] = []
    trainers: list[Any] = []
    saved = stage.final_metrics

    def watch(trainer: Any) -> Any:
        trainers.append(trainer)
        held.extend(weakref.ref(p) for p in trainer.model.parameters())
        held.extend(weakref.ref(s["exp_avg"]) for s in trainer.optimizer.state.values())
        return saved(trainer)

    def merge(*args: Any) -> None:
        assert len(held) > 40
        assert not [ref for ref in held if ref() is not None]
        merge_in_place(*args)

    monkeypatch.setattr(stage, "final_metrics", watch)
    monkeypatch.setattr(stage, "merge_in_place", merge)
    handle = train(settings(tiny_model_dir, tmp_path / "run", mixed_precision="bf16"))
    assert {p.dtype for p in handle.model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(handle.model), logits(load(tmp_path / "run").model))


def test_a_merged_model_that_does_not_fit_stays_on_the_cpu(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = merging.load_trained

    def small(folder: Path, config: ORPOConfig, device: Any = None) -> Any:
        if device is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(folder, config, device)

    monkeypatch.setattr(merging, "load_trained", small)
    merge_in_place(adapter, ORPOConfig())
    model = merging.open_merged(adapter, ORPOConfig(peft=True, quantization="int4"))
    assert model.device.type == "cpu"
    assert "stays on the CPU" in caplog.text


def test_a_quantised_run_says_that_the_merged_model_is_another(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "orpo_dist"):
        handle = train(settings(tiny_model_dir, tmp_path / "run", quantization="int4"))
    assert "merge_adapter: trained on a base in int4" in caplog.text
    assert not getattr(handle.model, "is_quantized", False)
    caplog.clear()
    opened = load(tmp_path / "run")
    assert "int4" not in caplog.text
    assert opened.score("Hi", "there") == handle.score("Hi", "there")


def test_going_on_after_a_merge_does_not_leave_two_models(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A finished run may be resumed without merging; its adapter is then alone in the folder."""
    config = settings(tiny_model_dir, tmp_path / "run", save_strategy="steps", save_steps=2)
    train(config)
    more = {"max_steps": 4, "merge_adapter": False, "resume_from_checkpoint": "auto"}
    handle = train(config.replace(**more))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(logits(plain), logits(handle.model))
    assert not (tmp_path / "run" / "model.safetensors").exists()
