"""Loss, metrics and every gradient equal TRL's on the same batch; and where we differ."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_dist.base.types import Pair
from orpo_dist.data import Encoder, Limits
from orpo_dist.data.encode import Encoded
from orpo_dist.data.rows import Example
from orpo_dist.scoring.metrics import named_metrics, step_means
from orpo_dist.scoring.objective import orpo_loss
from orpo_dist.scoring.padding import pad_pairs, padded_scores

trl = pytest.importorskip("trl.experimental.orpo", reason="TRL is a development dependency")


def trl_trainer(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    folder: Path,
    beta: float,
    length: int = 512,
) -> Any:
    from datasets import Dataset

    args = trl.ORPOConfig(
        output_dir=str(folder),
        beta=beta,
        max_length=length,
        bf16=False,
        use_cpu=True,
        report_to=[],
        gradient_checkpointing=False,
    )
    data = Dataset.from_list(rows)
    return trl.ORPOTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def pairs_from(batch: dict[str, Any]) -> list[Pair]:
    """The very tokens of a TRL batch as pairs."""
    pairs = []
    for row in range(len(batch["chosen_input_ids"])):
        sides = []
        for side in ("chosen", "rejected"):
            ids = batch[f"{side}_input_ids"][row][batch[f"{side}_attention_mask"][row].bool()]
            labels = batch[f"{side}_labels"][row][: len(ids)]
            prompt_length = int((labels == -100).sum())
            sides.append((ids[:prompt_length].tolist(), ids[prompt_length:].tolist()))
        assert sides[0][0] == sides[1][0]
        pairs.append(Pair(sides[0][0], sides[0][1], sides[1][1]))
    return pairs


@pytest.mark.parametrize(
    ("alpha", "dtype", "bound"),
    [
        (0.1, torch.float32, 1e-5),
        (1.0, torch.float32, 1e-5),
        # In double precision what is left is TRL's own cast of the log-probs to fp32.
        (1.0, torch.float64, 1e-6),
        (2.5, torch.float64, 1e-6),
    ],
)
def test_loss_metrics_and_gradients_equal_trl(
    tiny_model: Any,
    tokenizer: Any,
    demo_rows: list[dict[str, str]],
    tmp_path: Path,
    alpha: float,
    dtype: torch.dtype,
    bound: float,
) -> None:
    ours = tiny_model.to(dtype)
    theirs = copy.deepcopy(tiny_model)
    trainer = trl_trainer(theirs, tokenizer, demo_rows[:6], tmp_path, beta=alpha)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    expected, trl_metrics = trainer.get_batch_loss_metrics(theirs, batch)
    expected.backward()

    padded = pad_pairs(pairs_from(batch), "prompt_and_completion", tokenizer.pad_token_id)
    scores = padded_scores(ours, padded)
    loss, metrics = orpo_loss(scores, alpha)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=bound)
    means = step_means(loss, metrics, alpha, 6, metrics.nll_tokens.item()).tolist()
    named = named_metrics(means)
    for name, value in trl_metrics.items():
        if not name.startswith("logits/"):  # would need whole logits; see docs
            assert named[name] == pytest.approx(value, abs=1e-5), name
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad - other.grad).abs().max().item() <= bound, name


def test_token_ids_equal_trl_on_plain_text(
    tiny_model: Any, tokenizer: Any, demo_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    """Without a template both tokenise prompt + answer jointly; EOS once, here and there."""
    tokenizer.chat_template = None
    trainer = trl_trainer(tiny_model, copy.deepcopy(tokenizer), demo_rows[:20], tmp_path, 0.1)
    encoder = Encoder(tokenizer, "none", Limits())
    for row, theirs in zip(demo_rows[:20], trainer.train_dataset, strict=True):
        ours = encoder.encode([Example(row["prompt"], row["chosen"], row["rejected"])])[0]
        assert isinstance(ours, Encoded)
        assert ours.prompt + ours.chosen == theirs["chosen_input_ids"]
        assert ours.prompt + ours.rejected == theirs["rejected_input_ids"]


def test_trl_ends_chatml_answers_twice_and_we_end_them_once(
    tiny_model: Any, tokenizer: Any, demo_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    row = demo_rows[0]
    chat = {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    trainer = trl_trainer(tiny_model, copy.deepcopy(tokenizer), [chat], tmp_path, 0.1)
    theirs = trainer.train_dataset[0]["chosen_input_ids"]
    ours = Encoder(tokenizer).encode([Example(chat["prompt"], row["chosen"], row["rejected"])])[0]
    assert isinstance(ours, Encoded)
    eos = tokenizer.eos_token_id
    newline = tokenizer("\n")["input_ids"]
    assert theirs == [*ours.prompt, *ours.chosen, *newline, eos]  # … <|im_end|> \n <|im_end|>
    assert ours.chosen.count(eos) == 1
    assert ours.chosen[-1] == eos


def test_trl_loses_eos_when_it_truncates_and_we_keep_it(
    tiny_model: Any, tokenizer: Any, demo_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    tokenizer.chat_template = None
    row = demo_rows[0]
    length = len(tokenizer(row["prompt"])["input_ids"]) + 6
    trainer = trl_trainer(tiny_model, copy.deepcopy(tokenizer), [row], tmp_path, 0.1, length)
    assert trainer.train_dataset[0]["chosen_input_ids"][-1] != tokenizer.eos_token_id
    limits = Limits(sequence=length)
    example = Example(row["prompt"], row["chosen"], row["rejected"])
    ours = Encoder(tokenizer, "none", limits).encode([example])[0]
    assert isinstance(ours, Encoded)
    assert len(ours.prompt + ours.chosen) == length
    assert ours.chosen[-1] == ours.rejected[-1] == tokenizer.eos_token_id
