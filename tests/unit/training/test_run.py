"""``train(config)``: from a file to a run folder, and what can be done with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from orpo_dist import (
    ORPOConfig,
    UserError,
    evaluate_model,
    load,
    train,
)
from orpo_dist.runs.folder import read_metrics
from tests.conftest import DEMO


def settings(model: Path, folder: Path, **changes: Any) -> ORPOConfig:
    values = {
        "model": str(model), "data_path": str(DEMO / "train.jsonl"), "project_name": str(folder),
        "max_steps": 4, "batch_size": 4, "gradient_accumulation": 1, "lr": 1e-2,
        "logging_steps": 1,
    }  # fmt: skip
    return ORPOConfig(**{**values, **changes})


def test_held_out_accuracy_rises_from_chance(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A model of random weights learns to prefer plain answers; a broken objective would not."""
    handle = train(
        settings(
            tiny_model_dir, tmp_path / "run", valid_data_path=str(DEMO / "eval.jsonl"),
            max_steps=None, epochs=4, batch_size=8, trainer_args={"eval_on_start": True},
            logging_steps=20,
        )
    )  # fmt: skip
    log = [
        entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval/loss" in entry
    ]
    assert log[0]["step"] == 0
    assert 0.35 <= log[0]["eval/rewards/accuracies"] <= 0.65
    assert handle.metrics["eval/rewards/accuracies"] >= 0.8
    assert handle.metrics["eval/logps/margins"] > log[0]["eval/logps/margins"] + 0.5
    assert handle.metrics["eval/loss/sft"] < log[0]["eval/loss/sft"] - 1


def test_run_folder_holds_what_the_readme_says(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rows = (DEMO / "train.jsonl").read_text(encoding="utf-8").splitlines()[:30]
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "\n".join([*rows, "not json", '{"prompt": "x", "chosen": "", "rejected": "y"}'])
    )
    config = settings(
        tiny_model_dir, folder, data_path=str(data), save_strategy="steps", save_steps=2
    )
    train(config)

    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["mixed_precision"] == ("none" if not torch.cuda.is_available() else "bf16")
    assert resolved["eval_strategy"] == "no"
    assert ORPOConfig(**resolved).lr == 1e-2
    log = read_metrics(folder / "metrics.jsonl")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    assert all({"epoch", "loss/orpo", "learning_rate", "grad_norm"} <= set(entry) for entry in log)
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "completed"
    assert run["seconds"] > 0
    assert run["skipped"] == {"train": {"not_json": 1, "empty_chosen": 1}}
    assert run["metrics"]["loss/orpo"] == log[-1]["loss/orpo"]
    assert run["versions"]["torch"] == torch.__version__
    report = json.loads((folder / "data_report.json").read_text())
    assert report["train"]["pairs"] == 30
    assert report["train"]["skipped"]["not_json"]["first"] == [f"{data}:31"]
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert (folder / "report.html").read_text().count("<svg") == 4
    assert not list(folder.rglob("training_args.bin"))


def test_tensorboard_has_every_metric(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evaluations = {"eval_strategy": "steps", "eval_steps": 2}
    held_out = str(DEMO / "eval.jsonl")
    train(settings(tiny_model_dir, tmp_path, valid_data_path=held_out, **evaluations))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    log = read_metrics(tmp_path / "metrics.jsonl")
    for name in ("loss/orpo", "rewards/accuracies", "nll_loss", "log_odds"):
        assert [e.value for e in events.Scalars(f"train/{name}")] == pytest.approx(
            [entry[name] for entry in log if name in entry], rel=1e-5
        )
        assert f"eval/{name}" in tags


def test_run_folder_loads_with_plain_transformers(tiny_model_dir: Path, tmp_path: Path) -> None:
    handle = train(settings(tiny_model_dir, tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == handle.tokenizer.chat_template
    for name, tensor in handle.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"target_modules": "q_proj, v_proj"}])
def test_adapter_runs_load_with_peft_from_anywhere(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.chdir(tiny_model_dir.parent)  # a relative base must not end up in the adapter
    model = Path(tiny_model_dir.name)
    handle = train(settings(model, tmp_path, peft=True, lora_r=4, **changes))
    monkeypatch.chdir(tmp_path)
    ids = torch.tensor([[7, 8, 9]])
    for loader in (AutoModelForCausalLM, AutoPeftModelForCausalLM):
        reloaded = loader.from_pretrained(tmp_path)
        torch.testing.assert_close(reloaded(ids).logits, handle.model(ids).logits)
    assert load(tmp_path).score("Hello", "there") == pytest.approx(
        handle.score("Hello", "there"), abs=1e-5
    )
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_merged_adapter_is_a_plain_model(
    tiny_model_dir: Path, tmp_path: Path, quantization: str | None
) -> None:
    config = settings(tiny_model_dir, tmp_path, peft=True, quantization=quantization)
    handle = train(config.replace(merge_adapter=True))
    assert not (tmp_path / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged.state_dict()[name], base.state_dict()[name])
    ids = torch.tensor([[7, 8, 9]])
    torch.testing.assert_close(merged(ids).logits, handle.model(ids).logits)


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_quantised_bases_really_train(
    tiny_model_dir: Path, tmp_path: Path, quantization: str
) -> None:
    import bitsandbytes

    handle = train(settings(tiny_model_dir, tmp_path, peft=True, quantization=quantization))
    kind = {"int4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}[quantization]
    assert any(isinstance(module, kind) for module in handle.model.modules())
    adapters = {n: p for n, p in handle.model.named_parameters() if p.requires_grad}
    assert adapters
    assert all("lora_" in name for name in adapters)
    assert any(p.abs().max() > 1e-4 for name, p in adapters.items() if "lora_B" in name)
    log = read_metrics(tmp_path / "metrics.jsonl")
    assert all(entry["grad_norm"] > 0 for entry in log)


def test_early_stopping_restores_the_best_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A learning rate far too high: evaluations get worse, the first one is the best."""
    handle = train(
        settings(
            tiny_model_dir, tmp_path, valid_data_path=str(DEMO / "eval.jsonl"), max_steps=40,
            eval_strategy="steps", eval_steps=2, lr=0.5, scheduler="constant", warmup_ratio=0,
            early_stopping_patience=2, trainer_args={"eval_on_start": False},
        )
    )  # fmt: skip
    evaluations = {
        entry["step"]: entry["eval/loss"]
        for entry in read_metrics(tmp_path / "metrics.jsonl")
        if "eval/loss" in entry
    }
    best = min(evaluations, key=lambda step: evaluations[step])
    assert max(evaluations) < 40  # it did stop
    assert best < max(evaluations)
    again = evaluate_model(tmp_path, str(DEMO / "eval.jsonl"), progress=False)
    assert handle.metrics["eval/loss"] == pytest.approx(evaluations[best], rel=1e-5)
    assert again["preference_accuracy"] == pytest.approx(handle.metrics["eval/rewards/accuracies"])


def test_metric_for_best_model_may_be_one_that_rises(tiny_model_dir: Path, tmp_path: Path) -> None:
    handle = train(
        settings(
            tiny_model_dir, tmp_path, valid_data_path=str(DEMO / "eval.jsonl"), max_steps=8,
            eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
            metric_for_best_model="eval/rewards/accuracies",
        )
    )  # fmt: skip
    log = read_metrics(tmp_path / "metrics.jsonl")
    seen = [e["eval/rewards/accuracies"] for e in log if "eval/loss" in e]
    assert handle.metrics["eval/rewards/accuracies"] == max(seen)


def test_a_run_is_never_overwritten_by_accident(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    train(settings(tiny_model_dir, folder, peft=True))
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        train(settings(tiny_model_dir, folder))
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    assert json.loads((folder / "run.json").read_text())["status"] == "completed"
    train(settings(tiny_model_dir, folder, overwrite=True))
    assert not (folder / "adapter_config.json").exists()
    assert (folder / "model.safetensors").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_failed_run_says_so(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        train(settings(tiny_model_dir, tmp_path, data_path="missing.jsonl"))
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["status"] == "failed"
    assert "missing.jsonl" in run["error"]
    train(settings(tiny_model_dir, tmp_path, overwrite=True))


def test_a_split_of_a_single_file_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="single file and has no splits"):
        train(settings(tiny_model_dir, tmp_path, valid_split="test"))


def test_a_template_file_becomes_part_of_the_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    handle = train(settings(tiny_model_dir, tmp_path / "run", chat_template=str(template)))
    template.unlink()
    again = load(tmp_path / "run")
    assert again.encoder.prompt_ids("Hi") == handle.encoder.prompt_ids("Hi")
    assert again.tokenizer.decode(again.encoder.prompt_ids("Hi")) == "[Hi]"


def test_leaked_evaluation_pairs_are_counted(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = tmp_path / "valid.jsonl"
    lines = [(DEMO / name).read_text().splitlines() for name in ("train.jsonl", "eval.jsonl")]
    mixed.write_text("\n".join(lines[0][:3] + lines[1][:5]))
    train(settings(tiny_model_dir, tmp_path / "run", valid_data_path=str(mixed)))
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["leaked_pairs"] == 3
    assert "3 of 8 pairs are also in the training data" in caplog.text


def test_source_weights_reach_the_plan(tiny_model_dir: Path, tmp_path: Path) -> None:
    both = [str(DEMO / "train.jsonl"), str(DEMO / "eval.jsonl")]
    config = settings(
        tiny_model_dir, tmp_path, data_path=both, data_weights=[0.25, 1.0], max_steps=None,
        epochs=1, batch_size=16, logging_steps=1,
    )  # fmt: skip
    train(config)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 7  # (192/4 + 64) / 16


def test_handle_scores_and_generates(tiny_model_dir: Path) -> None:
    handle = load(tiny_model_dir)
    prompt, answer = "What is a cat?", "A small animal."
    text = handle.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = handle.tokenizer(text + answer + "<|im_end|>", return_tensors="pt").input_ids
    size = len(handle.tokenizer(answer + "<|im_end|>").input_ids)
    logp = handle.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-size:]
    assert handle.score(prompt, answer) == pytest.approx(logp.mean().item(), abs=1e-5)

    one = handle.generate(prompt, max_new_tokens=6)
    assert handle.generate([prompt, "Hi"], max_new_tokens=6)[0] == one  # padding changes nothing
    messages = [{"role": "user", "content": prompt}]
    assert handle.generate(messages, max_new_tokens=6) == one
    piped = handle.pipeline()(messages, max_new_tokens=6, do_sample=False)
    assert piped[0]["generated_text"][-1]["content"] == one


def test_evaluation_by_category_and_json(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from orpo_dist.cli import main

    out = tmp_path / "result.json"
    code = main([
        "evaluate", str(tiny_model_dir), "--data-path", str(DEMO / "eval.jsonl"), "--json", str(out)
    ])  # fmt: skip
    assert code == 0
    result = json.loads(out.read_text())
    assert result["pairs"] == 64
    assert sum(part["pairs"] for part in result["categories"].values()) == 64
    hits = sum(p["preference_accuracy"] * p["pairs"] for p in result["categories"].values())
    assert hits / 64 == pytest.approx(result["preference_accuracy"])
    assert result["accuracy_low"] < result["preference_accuracy"] < result["accuracy_high"]
    assert "arithmetic" in capsys.readouterr().out
