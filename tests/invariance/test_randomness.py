"""No family draws random numbers in training, whatever its config asks for."""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from orpo_dist import ORPOConfig, ORPOTrainer, UserError, train
from orpo_dist.engines.runtime import Runtime
from orpo_dist.models.randomness import as_it_was, most_apart, quiet, refuse_random
from orpo_dist.scoring.miniature import parts
from tests.conftest import DEMO
from tests.families import small_config

DATA = str(DEMO / "train.jsonl")
# Read by functions from numbers on modules and in the config, dropped layers, jittered and sampling
# routers: where they were left on.
RANDOM = (
    "biogpt", "bloom", "doge", "falcon", "gpt_bigcode", "gpt_neox_japanese", "gptj", "minimax",
    "minimax_m2", "mixtral", "opt", "persimmon", "phimoe", "seed_oss", "starcoder2", "trocr",
    "xglm",
)  # fmt: skip
OTHERS = (
    "codegen", "cpmant", "ctrl", "gemma2", "glm4_moe", "gpt2", "gpt_neox", "gpt_oss", "llama",
    "openai-gpt", "phi", "qwen2_moe", "stablelm",
)  # fmt: skip


def random_config(kind: str) -> Any:
    """A tiny config in which everything is random that can be."""
    config = small_config(kind)
    for part in parts(config):
        for name, value in list(vars(part).items()):
            if re.search("drop|jitter", name) and type(value) in (float, int):
                setattr(part, name, 1 if type(value) is int else 0.4)
    return config


def random_model(kind: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(random_config(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("kind", (*RANDOM, *OTHERS))
def test_training_scores_twice_alike_and_as_evaluation_did(kind: str) -> None:
    model, ids = random_model(kind), torch.arange(1, 20)[None]
    assert most_apart(model) > 0.01  # it was random
    with torch.no_grad():
        before = model.eval()(input_ids=ids, use_cache=False).logits
        assert quiet(model)
        torch.testing.assert_close(
            model.eval()(input_ids=ids, use_cache=False).logits, before, rtol=0, atol=0
        )
        trained = model.train()(input_ids=ids, use_cache=False).logits
    assert most_apart(model) == 0
    torch.testing.assert_close(trained, before)
    assert quiet(model) == ""
    refuse_random(model, Runtime())


def test_a_copy_stays_quiet_and_layers_in_it_still_train() -> None:
    model = random_model("phimoe")
    quiet(model)
    again = copy.deepcopy(model).train()
    block = again.model.layers[0].mlp
    assert not block.training and not block.router.training
    assert block.experts.training and again.model.layers[0].training
    assert most_apart(again) == 0


class Noise(nn.Module):
    def forward(self, hidden: Any) -> Any:
        return hidden + torch.rand_like(hidden) if self.training else hidden


def test_a_model_that_stays_random_is_refused(
    tiny_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    tiny_model.model.norm = nn.Sequential(tiny_model.model.norm, Noise())
    args = ORPOConfig(project_name=str(tmp_path), log="none", attention="padded")
    with pytest.raises(UserError, match="LlamaForCausalLM: draws random numbers in training"):
        ORPOTrainer(
            model=tiny_model,
            args=args,
            train_dataset=[{"prompt": "a", "chosen": "b", "rejected": "c"}],
            processing_class=tokenizer,
        )


def test_a_run_says_what_it_switched_off_and_saves_the_config_as_it_was(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path / "model"
    model.config.attention_dropout = 0.25
    model.save_pretrained(folder)
    for file in tiny_model_dir.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    caplog.set_level(logging.INFO, "orpo_dist")
    handle = train(
        ORPOConfig(
            model=str(folder), data_path=DATA, project_name=str(tmp_path / "run"), max_steps=1,
            batch_size=2, gradient_accumulation=1, log="none",
        )
    )  # fmt: skip
    said = [line for line in caplog.messages if "switched off in the base model" in line]
    assert len(said) == 1
    assert "attention_dropout 0.25; 2 modules with attention_dropout" in said[0]
    for saved in (tmp_path / "run", next((tmp_path / "run").glob("checkpoint-*"))):
        assert json.loads((saved / "config.json").read_text())["attention_dropout"] == 0.25
    assert handle.model.config.attention_dropout == 0
    with as_it_was(handle.model):
        assert handle.model.config.attention_dropout == 0.25


def test_the_dropout_of_an_adapter_stays(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    trainer = ORPOTrainer(
        model=tiny_model,
        args=ORPOConfig(project_name=str(tmp_path), log="none", peft=True, lora_dropout=0.5),
        train_dataset=[{"prompt": "a", "chosen": "b", "rejected": "c"}],
        processing_class=tokenizer,
    )
    kept = {
        m.p for path, m in trainer.model.named_modules() if path.endswith("lora_dropout.default")
    }
    assert kept == {0.5}
