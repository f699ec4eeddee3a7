"""ORPOTrainer on its own, in the style of transformers' Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from orpo_dist import ORPOConfig, ORPOTrainer, UserError
from orpo_dist.evaluation import evaluate_model
from orpo_dist.models.trained import TrainedModel

Rows = list[dict[str, str]]


def config(folder: Path, **changes: Any) -> ORPOConfig:
    values = {
        "project_name": str(folder), "max_steps": 3, "batch_size": 4, "gradient_accumulation": 1,
        "lr": 1e-2, "logging_steps": 1, "save_strategy": "no", "log": "none",
    }  # fmt: skip
    return ORPOConfig(**{**values, **changes})


def test_hf_style_with_rows_adapter_and_callback(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.global_step)

    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    trainer = ORPOTrainer(
        model=tiny_model,
        args=config(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=demo_rows[:20],
        eval_dataset=demo_rows[20:30],
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Watch()],
    )
    trainer.train()
    assert seen == [1, 2, 3]
    assert isinstance(trainer.model, PeftModel)
    base = trainer.model.get_base_model().state_dict()
    for name, tensor in before.items():  # LoRA: the base stays what it was
        wrapped = name.replace("_proj.weight", "_proj.base_layer.weight")
        assert torch.equal(base[wrapped], tensor)
    trainer.save_model(str(tmp_path / "saved"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(reloaded(ids).logits, trainer.model(ids).logits)
    assert not (tmp_path / "saved" / "training_args.bin").exists()


def test_a_model_may_be_given_by_its_folder(
    tiny_model_dir: Path, demo_rows: Rows, tmp_path: Path
) -> None:
    trainer = ORPOTrainer(str(tiny_model_dir), config(tmp_path), train_dataset=demo_rows[:8])
    assert trainer.train().global_step == 3


def test_every_metric_is_logged_under_both_namings(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    trainer = ORPOTrainer(
        tiny_model, config(tmp_path, orpo_alpha=0.5), demo_rows[:8], demo_rows[:8], tokenizer
    )
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss/orpo" in entry)
    for name in (
        "loss/orpo", "loss/sft", "loss/odds_ratio", "rewards/margins", "rewards/accuracies",
        "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "log_odds",
        "nll_loss", "log_odds_ratio", "log_odds_chosen",
    ):  # fmt: skip
        assert name in entry
        assert f"eval_{name}" in trainer.state.log_history[-2]
    assert entry["loss/orpo"] == pytest.approx(entry["loss/sft"] + 0.5 * entry["loss/odds_ratio"])
    assert entry["rewards/margins"] == pytest.approx(
        0.5 * (entry["logps/chosen"] - entry["logps/rejected"]), abs=1e-6
    )


def test_accuracy_is_there_at_alpha_zero(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    trainer = ORPOTrainer(tiny_model, config(tmp_path, orpo_alpha=0), None, demo_rows, tokenizer)
    assert 0.3 < trainer.evaluate()["eval_rewards/accuracies"] < 0.7  # a random model


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_evaluation_is_exact_at_any_batch_size(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path, batch_size: int
) -> None:
    settings = config(tmp_path, batch_size=batch_size)
    rows = demo_rows[:17]
    metrics = ORPOTrainer(tiny_model, settings, None, rows, tokenizer).evaluate()
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    handle = TrainedModel(tiny_model, tokenizer, settings, tmp_path)
    other = evaluate_model(handle, str(path), settings.replace(batch_size=1), progress=False)
    assert metrics["eval_rewards/accuracies"] == pytest.approx(other["preference_accuracy"])
    assert metrics["eval_logps/margins"] == pytest.approx(other["mean_margin"], abs=1e-5)
    assert metrics["eval_loss/sft"] == pytest.approx(
        torch.tensor(other["perplexity"]).log().item(), abs=1e-5
    )


def test_gradient_checkpointing_changes_memory_not_numbers(
    tiny_model_dir: Path, demo_rows: Rows, tmp_path: Path
) -> None:
    def curve(**changes: Any) -> list[float]:
        trainer = ORPOTrainer(str(tiny_model_dir), config(tmp_path, **changes), demo_rows[:12])
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == changes.get(
            "gradient_checkpointing", False
        )
        return [e["loss/orpo"] for e in trainer.state.log_history if "loss/orpo" in e]

    assert curve(gradient_checkpointing=True) == pytest.approx(curve(), rel=1e-5)
    with_adapter = curve(gradient_checkpointing=True, peft=True)
    assert with_adapter == pytest.approx(curve(peft=True), rel=1e-5)
    assert with_adapter[-1] != pytest.approx(with_adapter[0], rel=1e-4)  # it does train


def test_dropout_is_off_in_the_base_but_not_in_the_adapter(
    tiny_model_dir: Path, demo_rows: Rows, tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=600, n_embd=32, n_layer=1, n_head=2, n_positions=512)
    )
    assert gpt2.transformer.drop.p == 0.1
    adapter = LoraConfig(r=2, lora_dropout=0.25, target_modules=["c_attn"], fan_in_fan_out=True)
    from orpo_dist.models.model import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_model_dir), ORPOConfig())
    trainer = ORPOTrainer(
        gpt2, config(tmp_path), demo_rows[:8], processing_class=tokenizer, peft_config=adapter
    )
    rates = {
        name: module.p
        for name, module in trainer.model.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert all(rate == (0.25 if "lora_dropout" in name else 0.0) for name, rate in rates.items())
    assert 0.25 in rates.values()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"eval_strategy": "epoch"}, "evaluation data"),
        ({"early_stopping_patience": 1}, "evaluation data"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"scheduler": "cosinus"}, "cosine"),
        ({"optimizer": "adam2000"}, "adamw_torch"),
        ({"log": "no_such_logger"}, "no_such_logger"),
        ({"trainer_args": {"warmpu": 1}}, "warmpu"),
        ({"max_seq_length": 4096}, "context of 512"),
        ({"peft": True, "target_modules": "nope"}, "q_proj"),
        ({"metric_for_best_model": "acuracy"}, "rewards/accuracies"),
        ({"optimizer": "galore_adamw"}, "optimizer galore_adamw"),
        ({"scheduler": "warmup_stable_decay"}, "scheduler warmup_stable_decay"),
        ({"trainer_args": {"tf32": True}}, "trainer_args"),
    ],
)
def test_settings_that_cannot_work_are_one_sentence(
    tiny_model_dir: Path, demo_rows: Rows, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    if torch.cuda.is_available() and "mixed_precision" in changes:
        pytest.skip("fp16 is fine on a GPU")
    with pytest.raises(UserError, match=word) as caught:
        ORPOTrainer(str(tiny_model_dir), config(tmp_path, **changes), demo_rows[:8]).train()
    assert "\n" not in str(caught.value)


def test_the_config_adapts_a_model_given_as_an_object(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    settings = config(tmp_path, peft=True, lora_r=4)
    trainer = ORPOTrainer(tiny_model, settings, demo_rows[:8], processing_class=tokenizer)
    assert isinstance(trainer.model, PeftModel)
    again = {"processing_class": tokenizer, "peft_config": LoraConfig(r=2)}
    with pytest.raises(UserError, match="has an adapter already"):
        ORPOTrainer(trainer.model, settings, demo_rows[:8], **again)
    quantised = config(tmp_path, peft=True, quantization="int4")
    with pytest.raises(UserError, match="happens on loading"):
        ORPOTrainer(tiny_model, quantised, demo_rows[:8], processing_class=tokenizer)


def test_plain_training_arguments_are_refused_with_the_way_out(
    tiny_model: Any, tokenizer: Any, demo_rows: Rows, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="ORPOConfig"):
        ORPOTrainer(tiny_model, TrainingArguments(str(tmp_path)), demo_rows, None, tokenizer)  # type: ignore[arg-type]


def test_bf16_computes_in_half_and_keeps_fp32_weights(
    tiny_model_dir: Path, demo_rows: Rows, tmp_path: Path
) -> None:
    def first_loss(**changes: Any) -> float:
        trainer = ORPOTrainer(str(tiny_model_dir), config(tmp_path, **changes), demo_rows[:12])
        trainer.train()
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        return trainer.state.log_history[0]["loss/orpo"]

    half, full = first_loss(mixed_precision="bf16"), first_loss()
    assert half != full
    assert half == pytest.approx(full, rel=0.02)
