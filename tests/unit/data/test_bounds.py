"""Ids, lengths and ends that a model or its tokenizer does not take are told before any work."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, MptConfig, RobertaConfig

import orpo_dist as od
from orpo_dist.base.types import UserError
from orpo_dist.cli import main
from orpo_dist.data import Encoder, Limits, PairDataset, limits_of
from orpo_dist.data.bounds import check_ids, context_of, require_end
from orpo_dist.models import model as models
from orpo_dist.models import trained as handles
from orpo_dist.models.kinds import embedding_rows

ROWS = [
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    {"prompt": "How?", "chosen": "So.", "rejected": "Not."},
]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be read that is large."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(models, "load_weights", read)


@pytest.fixture
def small(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A folder whose embedding has two rows by its config: not even the end token is known."""
    folder = tmp_path / "small"
    shutil.copytree(tiny_model_dir, folder)
    change(folder / "config.json", vocab_size=2, pad_token_id=None, eos_token_id=None)
    return folder


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def config(small: Path, write_rows: Callable[..., Path], tmp_path: Path) -> od.ORPOConfig:
    return od.ORPOConfig(
        model=str(small), data_path=[str(write_rows(ROWS))], max_steps=1,
        project_name=str(tmp_path / "run"), log="none",
    )  # fmt: skip


@pytest.mark.usefixtures("no_weights")
def test_ids_beyond_the_embedding_are_told_before_any_weight_is_read(
    config: od.ORPOConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(config.model), config.data_path[0]
    for use in (
        lambda: od.train(config),
        lambda: od.evaluate_model(model, data),
        lambda: od.ORPOTrainer(model, config, ROWS),
        lambda: od.ORPOTrainer(None, config, ROWS),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert "beyond the 2 rows of the model's embedding" in str(caught.value)
        assert "resize_token_embeddings(" in str(caught.value)
    assert main(["plan", "--model", model, "--data-path", data, "--gpus", "0"]) == 2
    assert "beyond the 2 rows" in capsys.readouterr().err


def test_the_audit_names_the_rows(
    config: od.ORPOConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = tmp_path / "audit.json"
    line = ["data", "audit", *config.data_path, "--model", str(config.model), "--json", str(report)]
    assert main(line) == 0
    assert "2 of 2 (100.0%) pairs hold a token that the model has no embedding for" in (
        capsys.readouterr().out
    )
    findings = {f["rule"]: f for f in json.loads(report.read_text())["findings"]}
    assert findings["beyond_embedding"]["severity"] == "error"


def test_a_tokenizer_with_more_words_than_are_used_is_fine(
    tiny_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.add_tokens(["<unused1>", "<unused2>"])
    config = od.ORPOConfig(project_name=str(tmp_path), log="none")
    od.ORPOTrainer(tiny_model, config, ROWS, processing_class=tokenizer)
    with pytest.raises(UserError, match=r"train_dataset: token '<unused2>' \(id 601\) is beyond "):
        rows = [*ROWS, {"prompt": "<unused2>", "chosen": "a", "rejected": "b"}]
        od.ORPOTrainer(tiny_model, config, rows, processing_class=tokenizer)
    with pytest.raises(UserError, match="eval_dataset: token '<unused1>'"):
        rows = [{"prompt": "x", "chosen": "a <unused1>", "rejected": "b"}]
        od.ORPOTrainer(tiny_model, config, ROWS, rows, processing_class=tokenizer)
    trainer = od.ORPOTrainer(tiny_model, config, ROWS, processing_class=tokenizer)
    with pytest.raises(UserError, match="eval_dataset: token '<unused1>'"):
        trainer.evaluate(rows)


def by_hand(*ids: int, prompt: int = 1) -> PairDataset:
    """One pair of a prompt and two answers of the same ids."""
    tokens = np.asarray([1] * prompt + [*ids] * 2, np.int32)
    zeros = np.zeros(1, np.int32)
    lengths = np.asarray([[prompt, len(ids), len(ids)]], np.int32)
    report = {"category_names": [""], "skipped": {}, "pairs": 1}
    return PairDataset(tokens, lengths, zeros, zeros, None, report)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (by_hand(5, -1), "holds the token id -1; ids count from 0"),
        (by_hand(700, 2), r"\(id 700\) is beyond the 600 rows .*resize_token_embeddings\(701\)"),
        (by_hand(5, 2, prompt=511), "take 513 tokens, over the model's context of 512"),
    ],
)
def test_pairs_made_by_hand_are_checked(
    pairs: PairDataset, message: str, tiny_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    config = od.ORPOConfig(project_name=str(tmp_path), log="none")
    with pytest.raises(UserError, match=f"train_dataset: .*{message}"):
        od.ORPOTrainer(tiny_model, config, pairs, processing_class=tokenizer)
    trainer = od.ORPOTrainer(tiny_model, config, by_hand(5, 2), processing_class=tokenizer)
    with pytest.raises(UserError, match=f"eval_dataset: .*{message}"):
        trainer.evaluate(pairs)


def test_a_handle_refuses_tokens_that_its_model_does_not_know(
    tiny_model_dir: Path, tokenizer: Any
) -> None:
    handle = od.load(tiny_model_dir)
    handle.tokenizer.add_tokens(["<new>"])
    handle.tokenizer.add_special_tokens({"pad_token": "<filler>"})
    for use in (
        lambda: handle.score("<new>", "a"),
        lambda: handle.score("a", "<new>"),
        lambda: handle.generate("<new>"),
        lambda: handle.generate(["a", "b <new>"]),
    ):
        with pytest.raises(UserError, match=r"token '<new>' \(id 600\) is beyond the 600 rows"):
            use()
    texts = handle.generate(["a", "a longer one"], max_new_tokens=2)  # padded by what is known
    assert len(texts) == 2
    member = od.Ensemble([handles_member(handle)], method="vote")
    with pytest.raises(UserError, match="'<new>'"):
        member.generate("<new>")
    with pytest.raises(UserError, match="'<new>'"):
        member.score("a", "<new>")


def handles_member(handle: handles.TrainedModel) -> Any:
    from orpo_dist.ensembles.members import Member

    return Member("one", handle, 1.0)


def test_rows_are_counted_in_the_module(tiny_model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    assert embedding_rows(tiny_model) == 600
    tiny_model.resize_token_embeddings(640)
    tiny_model.config.vocab_size = 9  # no matter
    assert embedding_rows(tiny_model) == 640
    settings = LoraConfig(target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"])
    assert embedding_rows(get_peft_model(tiny_model, settings)) == 640


def test_ids_that_nobody_can_judge_pass(tokenizer: Any) -> None:
    check_ids([10**6], tokenizer, None, "x")
    check_ids([], tokenizer, 3, "x")


# --- ends


@pytest.mark.usefixtures("no_weights")
def test_a_tokenizer_without_an_end_is_told_everywhere(
    config: od.ORPOConfig,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, data = tmp_path / "endless", config.data_path[0]
    shutil.copytree(tiny_model_dir, folder)
    change(folder / "tokenizer_config.json", eos_token=None)
    run = str(tmp_path / "r")
    for line in (
        ["train", "--model", str(folder), "--data-path", data, "--project-name", run],
        ["evaluate", str(folder), "--data-path", data],
        ["generate", str(folder), "--prompt", "x"],
        ["generate", str(folder), "--chat"],
        ["plan", "--model", str(folder), "--data-path", data, "--gpus", "0"],
        ["data", "audit", data, "--model", str(folder)],
    ):
        assert main(line) == 2, line
        said = capsys.readouterr().err.splitlines()[-1]
        assert "the tokenizer has no end-of-text token" in said, line


@pytest.mark.parametrize(("end", "unknown"), [(None, None), (0, 0)])
def test_an_end_that_is_no_word_of_the_tokenizer(end: int | None, unknown: int | None) -> None:
    class Foreign:
        eos_token, eos_token_id = "<nope>", end
        unk_token, unk_token_id = "<unk>", unknown

    with pytest.raises(UserError, match="eos_token '<nope>' is not in its vocabulary"):
        require_end(Foreign())
    with pytest.raises(UserError, match="eos_token '<nope>' is not in its vocabulary"):
        Encoder(Foreign())


def test_an_end_that_a_tokenizer_adds_by_itself_is_beyond_the_embedding(
    tiny_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.add_special_tokens({"eos_token": "<nope>"})  # as loading such a folder does
    tokenizer.chat_template = None  # its own names another end
    config = od.ORPOConfig(project_name=str(tmp_path), log="none")
    with pytest.raises(
        UserError, match=r"token '<nope>' \(id 600\), which ends answers, is beyond"
    ):
        od.ORPOTrainer(tiny_model, config, ROWS, processing_class=tokenizer)


def test_an_end_that_is_the_unknown_token_by_name_is_one(tokenizer: Any) -> None:
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2 has it
    require_end(tokenizer)


# --- lengths


def test_limits_over_the_context_are_refused_at_once(tiny_model_dir: Path) -> None:
    hf_config = AutoConfig.from_pretrained(tiny_model_dir)
    settings = od.ORPOConfig(max_prompt_length=511, max_completion_length=513, max_seq_length=600)
    with pytest.raises(UserError) as caught:
        limits_of(settings, hf_config)
    assert str(caught.value) == (
        "max_completion_length 513 is over the model's context of 512 tokens; max_seq_length 600 "
        "is over the model's context of 512 tokens; max_prompt_length 511 leaves no room for an "
        "answer within the model's context of 512 tokens"
    )
    limits_of(od.ORPOConfig(), AutoConfig.for_model("gpt2", n_positions=64))  # nobody asked for 128
    fits = od.ORPOConfig(max_prompt_length=510, max_completion_length=512, max_seq_length=512)
    assert limits_of(fits, hf_config) == Limits(510, 512, 512, False, 512, 600)


@pytest.mark.parametrize(
    ("hf_config", "context"),
    [
        (AutoConfig.for_model("gpt2", n_positions=64), 64),
        (AutoConfig.for_model("opt", max_position_embeddings=64), 64),
        (MptConfig(max_seq_len=64), 64),
        (RobertaConfig(max_position_embeddings=66, pad_token_id=1), 64),
        (AutoConfig.for_model("bloom"), None),
        (AutoConfig.for_model("mamba"), None),
        (AutoConfig.for_model("xlnet"), None),  # it says -1
    ],
)
def test_the_context_of_every_kind(hf_config: Any, context: int | None) -> None:
    assert context_of(hf_config) == context


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_learned_positions_hold_what_the_context_says(kind: str, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    sizes = {
        "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16},
        "opt": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn_dim": 8,
                "word_embed_proj_dim": 8, "max_position_embeddings": 16},
    }  # fmt: skip
    hf_config = AutoConfig.for_model(kind, vocab_size=600, **sizes[kind])
    model = AutoModelForCausalLM.from_config(hf_config)
    most = context_of(hf_config)
    assert most == 16
    model(torch.ones(1, most, dtype=torch.long))
    with pytest.raises(IndexError):
        model(torch.ones(1, most + 1, dtype=torch.long))
    handle = od.TrainedModel(model, tokenizer, od.ORPOConfig(chat_template="none"), Path("m"))
    with pytest.raises(UserError, match="over the model's context of 16"):
        handle.generate("word " * 20)
    with pytest.raises(UserError, match="over the model's context of 16"):
        handle.score("word " * 20, "a")


def test_rows_in_memory_say_what_was_cut_and_skipped(
    tiny_model: Any, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*ROWS, {"prompt": "x " * 700, "chosen": "a", "rejected": "b"}, {"prompt": "only"}]
    config = od.ORPOConfig(max_prompt_length=None, project_name=str(tmp_path), log="none")
    with caplog.at_level(logging.INFO, "orpo_dist"):
        od.ORPOTrainer(tiny_model, config, rows, processing_class=tokenizer)
    assert "train_dataset: skipped 1 of 4 rows: 1 × " in caplog.text
    assert "train_dataset: 1 of 3 prompts (33%) are cut on the left" in caplog.text


def test_a_tokenizer_that_knows_a_lower_limit_is_heard(
    tiny_model: Any, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.model_max_length = 64
    config = od.ORPOConfig(project_name=str(tmp_path), log="none")
    od.ORPOTrainer(tiny_model, config, ROWS, processing_class=tokenizer)
    assert "model_max_length" not in caplog.text
    rows = [*ROWS, {"prompt": "x", "chosen": "y " * 90, "rejected": "b"}]
    od.ORPOTrainer(tiny_model, config, rows, processing_class=tokenizer)
    assert "the tokenizer's model_max_length is 64; where" in caplog.text
    assert "set max_seq_length 64" in caplog.text


def test_settings_of_the_encoder_alone_do_not_bound(tokenizer: Any) -> None:
    assert Encoder(tokenizer).limits == Limits()
