"""Models that are no causal language models are refused by their config, before any weight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

import orpo_dist as od
from orpo_dist.base.types import UserError
from orpo_dist.cli import main
from orpo_dist.models import model as models
from orpo_dist.models.kinds import BOTH_WAYS, NOT_BY_THEMSELVES, refuse_not_causal

ROWS = [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}]
SMALL = {"vocab_size": 600, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
FOREIGN = {
    "reformer": (tf.ReformerConfig(is_decoder=True), NOT_BY_THEMSELVES["reformer"] + " (reformer)"),
    "t5": (tf.T5Config(vocab_size=600), "is an encoder-decoder model (t5)"),
    "bart": (tf.BartConfig(vocab_size=600), "is an encoder-decoder model (bart)"),
    "whisper": (tf.WhisperConfig(), "is an encoder-decoder model (whisper)"),
    "bert": (tf.BertConfig(**SMALL), "sees a text in both directions (bert)"),
    "xlnet": (tf.XLNetConfig(vocab_size=600), "sees a text in both directions (xlnet)"),
    "llava": (tf.LlavaConfig(), "takes images or sound beside text (llava)"),
    "vit": (tf.ViTConfig(), "is no causal language model by its config.json (vit)"),
    "reward": (
        tf.LlamaConfig(**SMALL, architectures=["LlamaForSequenceClassification"]),
        "has another head than one for the next word (LlamaForSequenceClassification)",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_every_way_in_says_what_the_model_is(
    kind: str,
    tokenizer: Any,
    tmp_path: Path,
    write_rows: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(tf.AutoModelForCausalLM, "from_pretrained", read)
    hf_config, reason = FOREIGN[kind]
    folder, data = tmp_path / "model", str(write_rows(ROWS))
    hf_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for line in (
        [
            "train",
            "--model",
            str(folder),
            "--data-path",
            data,
            "--project-name",
            str(tmp_path / "r"),
        ],
        ["evaluate", str(folder), "--data-path", data],
        ["generate", str(folder), "--prompt", "x"],
        ["plan", "--model", str(folder), "--gpus", "0"],
        ["data", "audit", data, "--model", str(folder)],
    ):
        assert main(line) == 2, line
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"model {folder}: {reason}; here are trained" in said, line


def test_a_model_in_memory_too(tokenizer: Any, tmp_path: Path) -> None:
    config = od.ORPOConfig(project_name=str(tmp_path), log="none")
    small = tf.T5Config(vocab_size=600, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    for model, reason in (
        (tf.T5ForConditionalGeneration(small), "T5ForConditionalGeneration: is an encoder-decoder"),
        (tf.BertLMHeadModel(tf.BertConfig(**SMALL)), "BertLMHeadModel: sees a text in both"),
    ):
        with pytest.raises(UserError, match=reason):
            od.ORPOTrainer(model, config, ROWS, processing_class=tokenizer)
    decoder = tf.BertLMHeadModel(tf.BertConfig(**SMALL, is_decoder=True))
    od.ORPOTrainer(decoder, config, ROWS, processing_class=tokenizer)


@pytest.mark.parametrize(
    "hf_config",
    [
        tf.LlamaConfig(), tf.GPT2Config(), tf.GPTNeoXConfig(), tf.MambaConfig(), tf.Gemma3Config(),
        tf.BartConfig(is_decoder=True, is_encoder_decoder=False),
        tf.LlamaConfig(architectures=["LlamaForCausalLM"]),
    ],
)  # fmt: skip
def test_causal_models_pass(hf_config: Any) -> None:
    refuse_not_causal(hf_config, "model")


@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_models_of_both_directions_say_by_themselves_when_they_decode(kind: str) -> None:
    assert tf.AutoConfig.for_model(kind).is_decoder is False
    with pytest.raises(UserError, match="both directions"):
        refuse_not_causal(tf.AutoConfig.for_model(kind), "model")
    refuse_not_causal(tf.AutoConfig.for_model(kind, is_decoder=True), "model")


def test_the_config_of_an_adapter_is_that_of_its_base(adapter_dirs: list[Path]) -> None:
    found = models.load_model_config(str(adapter_dirs[0]), od.ORPOConfig())
    assert found.vocab_size == 600


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "holds no tokenizer.json"),
        (lambda f: (f / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json is not"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json is not a mapping"),
        (lambda f: (f / "config.json").write_text('{"a": '), "is not a valid JSON file"),
        (lambda f: change(f, hidden_size="x"), "field 'hidden_size': TypeError: "),
        (lambda f: change(f, hidden_size=128), "other sizes than its config.json says"),
        (lambda f: (f / "model.safetensors").write_bytes(b"version"), "cut short, or only a"),
        (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda f: (f / "config.json").rename(f / "x.gguf"), "no config.json but GGUF files"),
    ],
)
def test_a_broken_folder_is_one_sentence(
    spoil: Callable[[Path], Any],
    reason: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    spoil(folder)
    assert main(["generate", str(folder), "--prompt", "x"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("orpo-dist: error: ") and reason in said


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_file_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.gguf"
    file.write_text("GGUF")
    assert main(["generate", str(file), "--prompt", "x"]) == 2
    assert f"model {file}: is a file; name the folder" in capsys.readouterr().err


def test_checkpointing_where_there_is_none(tokenizer: Any, tmp_path: Path) -> None:
    """It was a ValueError of transformers, once training had begun."""
    small = tf.CTRLConfig(vocab_size=600, n_embd=8, dff=8, n_layer=1, n_head=1, n_positions=64)
    config = od.ORPOConfig(project_name=str(tmp_path), log="none", gradient_checkpointing=True)
    with pytest.raises(UserError, match="gradient_checkpointing: CTRLLMHeadModel has none"):
        od.ORPOTrainer(tf.CTRLLMHeadModel(small), config, ROWS, processing_class=tokenizer)
