"""Quantised bases: what they hold while they train, and that they are judged as trained."""

from __future__ import annotations

import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from orpo_dist import evaluate_model, evaluate_models, load, load_ensemble, train
from orpo_dist.cli import main
from orpo_dist.config import ORPOConfig
from orpo_dist.generation.speakers import speakers
from orpo_dist.models.model import load_policy
from orpo_dist.models.quantisation import why_not_quantised
from orpo_dist.planning.skeleton import Method, build, quantised_weights
from orpo_dist.training.trainer import ORPOTrainer
from tests.conftest import DEMO

EVAL = str(DEMO / "eval.jsonl")
KINDS = ("int4", "int8")


@pytest.mark.parametrize("quantization", KINDS)
def test_what_is_not_quantised_stays_in_the_compute_precision(
    tiny_model_dir: Path, quantization: str
) -> None:
    """Embeddings, norms and head as under plain LoRA, and as the plan counts them."""
    config = ORPOConfig(model=str(tiny_model_dir), peft=True, mixed_precision="bf16")
    plain = load_policy(config).state_dict()
    model = load_policy(config.replace(quantization=quantization))
    shape = AutoConfig.from_pretrained(tiny_model_dir)
    planned = build(shape, config, Method(True, quantization), "bf16")
    bits = {id(weight) for weight in quantised_weights(planned)}
    others = {name: p.dtype for name, p in planned.named_parameters() if id(p) not in bits}
    assert others["base_model.model.lm_head.weight"] == torch.bfloat16
    held = dict(model.named_parameters())
    for name, dtype in others.items():
        assert held[name].dtype == plain[name].dtype == dtype, name
        assert held[name].requires_grad == ("lora_" in name)


@pytest.mark.parametrize("quantization", KINDS)
def test_checkpointing_reaches_the_first_layer_of_a_quantised_base(
    tiny_model_dir: Path, demo_rows: Any, tmp_path: Path, quantization: str
) -> None:
    def run(**changes: Any) -> ORPOTrainer:
        config = ORPOConfig(
            project_name=str(tmp_path), peft=True, quantization=quantization, max_steps=2,
            lr=1e-2, logging_steps=1, log="none", save_strategy="no", **changes,
        )  # fmt: skip
        trainer = ORPOTrainer(str(tiny_model_dir), config, demo_rows[:8])
        trainer.train()
        return trainer

    plain, checkpointed = run(), run(gradient_checkpointing=True)
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    one, two = (dict(t.model.named_parameters())[first] for t in (plain, checkpointed))
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)


# --- judged as trained


@pytest.fixture(scope="module", params=KINDS)
def run(
    request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, float]]:
    """The kind, folder and final metrics of a run on a quantised base."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    handle = train(
        ORPOConfig(
            model=str(tiny_model_dir), data_path=[str(DEMO / "train.jsonl")],
            valid_data_path=[EVAL], project_name=str(folder), quantization=request.param,
            peft=True, max_steps=4, batch_size=4, lr=1e-2, log="none", save_steps=2,
            save_strategy="steps",
        )
    )  # fmt: skip
    return request.param, folder, handle.metrics


def nll(found: dict[str, Any]) -> float:
    return math.log(found["perplexity"])


def test_evaluation_finds_the_loss_of_training(
    run: tuple[str, Path, dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    kind, folder, metrics = run
    with caplog.at_level(logging.INFO, "orpo_dist"):
        trained = evaluate_model(folder, EVAL, progress=False)
        assert f"base in {kind} as in training; --full-precision" in caplog.text
        caplog.clear()
        full = evaluate_model(folder, EVAL, progress=False, full_precision=True)
        assert f"base in full precision, not in {kind}" in caplog.text
    assert nll(trained) == pytest.approx(metrics["eval/loss/sft"], abs=1e-4)
    assert trained["mean_log_odds"] == pytest.approx(metrics["eval/log_odds"], abs=1e-4)
    assert abs(nll(full) - nll(trained)) > 1.5e-4
    # Settings for how to read data do not change the model, and checkpoints are of the run.
    other = ORPOConfig(batch_size=4, max_prompt_length=128)
    assert nll(evaluate_model(folder, EVAL, other, progress=False)) == pytest.approx(nll(trained))
    last = evaluate_model(folder / "checkpoint-4", EVAL, progress=False)
    assert nll(last) == pytest.approx(nll(trained), abs=1e-6)


def test_a_base_is_judged_as_its_fine_tune(
    run: tuple[str, Path, dict[str, float]], tiny_model_dir: Path
) -> None:
    _, folder, _ = run
    base = str(tiny_model_dir)
    alone = evaluate_model(base, EVAL, progress=False)
    both = evaluate_models([base, str(folder)], EVAL, progress=False)["models"]
    assert abs(nll(both[base]) - nll(alone)) > 1.5e-4
    adapter = load(folder)
    with adapter.model.disable_adapter():
        same = evaluate_model(adapter, EVAL, progress=False)
    assert nll(both[base]) == pytest.approx(nll(same), abs=1e-5)
    full = evaluate_models([base, str(folder)], EVAL, progress=False, full_precision=True)["models"]
    assert nll(full[base]) == pytest.approx(nll(alone), abs=1e-6)


def test_other_commands_open_it_quantised_too(
    run: tuple[str, Path, dict[str, float]], tiny_model_dir: Path
) -> None:
    _, folder, _ = run
    trained, full = (load(folder, full_precision=way).score("Hi", "there") for way in (False, True))
    assert trained != full
    for way, wanted in ((False, trained), (True, full)):
        ensemble = load_ensemble([folder, tiny_model_dir], full_precision=way)
        assert ensemble.members[0].handle.score("Hi", "there") == pytest.approx(wanted, abs=1e-6)
        quantised = [getattr(m.handle.model, "is_quantized", False) for m in ensemble.members]
        assert quantised == [not way, not way]
        beside = speakers(str(folder), str(tiny_model_dir), way)
        assert beside[1].handle.score("Hi", "there") == pytest.approx(wanted, abs=1e-6)
        assert getattr(beside[0].handle.model, "is_quantized", False) != way


@pytest.mark.parametrize("words", [
    ["evaluate", "RUN", "--data-path", EVAL],
    ["generate", "RUN", "--prompt", "Hi", "--max-new-tokens", "1"],
    ["ensemble", "evaluate", "RUN", "--data-path", EVAL, "--method", "vote"],
    ["ensemble", "generate", "RUN", "--prompt", "Hi", "--max-new-tokens", "1"],
    ["compare", "RUN", "BASE", "--prompts", "PROMPTS", "--output", "PAGE", "--max-new-tokens", "1"],
])  # fmt: skip
def test_every_command_has_the_flag(
    run: tuple[str, Path, dict[str, float]], tiny_model_dir: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, words: list[str],
) -> None:  # fmt: skip
    kind, folder, _ = run
    (tmp_path / "prompts.txt").write_text("Hi\nBye\n")
    places = {"RUN": folder, "BASE": tiny_model_dir, "PROMPTS": tmp_path / "prompts.txt"}
    words = [str({**places, "PAGE": tmp_path / "page.html"}.get(word, word)) for word in words]
    with caplog.at_level(logging.INFO, "orpo_dist"):
        main(words)
        assert f"in {kind} as in training" in caplog.text
        assert "full precision, not" not in caplog.text
        caplog.clear()
        main([*words, "--full-precision"])
        assert f"in full precision, not in {kind}" in caplog.text
        assert "loads it unquantised" not in caplog.text


def test_without_bitsandbytes_it_is_unquantised_and_says_so(
    run: tuple[str, Path, dict[str, float]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, folder, _ = run
    full = load(folder, full_precision=True).score("Hi", "there")
    caplog.clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    assert load(folder).score("Hi", "there") == full
    (record,) = [r for r in caplog.records if r.name == "orpo_dist"]
    assert record.levelno == logging.WARNING
    assert "figures differ" in record.message
    assert "bitsandbytes is not installed" in record.message


def test_a_device_that_cannot_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available\nfor execution")

    assert why_not_quantised("int4", "cpu") is None
    assert why_not_quantised("int8", "cpu") is None
    monkeypatch.setattr("bitsandbytes.nn.Linear4bit.forward", fail)
    assert "(no kernel image is available)" in str(why_not_quantised("int4", "cpu"))


def test_what_has_no_run_or_is_no_adapter_is_opened_as_it_is(
    run: tuple[str, Path, dict[str, float]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kind, folder, _ = run
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("config.yaml", "checkpoint-*"))
    with caplog.at_level(logging.INFO, "orpo_dist"):
        handle = load(bare)
    assert not getattr(handle.model, "is_quantized", False)
    assert kind not in caplog.text


def test_a_soup_of_quantised_runs_is_in_full_precision_and_says_so(
    run: tuple[str, Path, dict[str, float]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, folder, _ = run
    assert main(["ensemble", "soup", str(tmp_path / "soup"), str(folder)]) == 0
    assert "trained on a quantised base" in caplog.text
    soup, full = load(tmp_path / "soup"), load(folder, full_precision=True)
    assert not getattr(soup.model, "is_quantized", False)
    assert soup.score("Hi", "there") == pytest.approx(full.score("Hi", "there"), abs=1e-4)
