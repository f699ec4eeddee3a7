"""One table of metrics, from which everything that shows or ranks them is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import ORPOConfig, ORPOTrainer
from orpo_dist.base.metrics import BY_CATEGORY, METRICS, docs_table
from orpo_dist.runs.folder import RunFolder, read_metrics
from orpo_dist.scoring.metrics import MEANS, named_metrics
from orpo_dist.sweeps.searched.metrics import METRICS as COMPARED
from orpo_dist.training import card
from orpo_dist.training.callbacks import MetricsFile
from tests.conftest import ROOT

TRL = {"loss", "nll_loss", "log_odds_ratio", "log_odds_chosen"}
COUNTERS = {"step", "epoch"}
CLOCKS = {"runtime", "samples_per_second", "steps_per_second"}  # Trainer's own


def test_the_docs_hold_the_table() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert "\n".join(docs_table()) in guide


def test_what_the_loss_says_is_in_the_table() -> None:
    assert set(named_metrics([1.0] * len(MEANS))) <= set(METRICS) | TRL


@pytest.mark.parametrize("name", METRICS)
def test_every_number_can_be_printed(name: str) -> None:
    assert METRICS[name].shown(0.5)


def test_whatever_is_shown_or_ranked_is_in_the_table() -> None:
    assert {m.source.removeprefix("eval/") for m in COMPARED.values()} <= set(METRICS)
    assert set(card.METRICS) <= set(METRICS) | {"loss"}
    assert set(BY_CATEGORY) <= set(METRICS)


def test_whatever_is_logged_is_in_the_table(
    tiny_model: Any, tokenizer: Any, demo_rows: Any, tmp_path: Path
) -> None:
    config = ORPOConfig(
        project_name=str(tmp_path), batch_size=2, max_steps=2, logging_steps=1, log="none",
        eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    folder = RunFolder(tmp_path)
    rows = [{**row, "category": str(at % 2)} for at, row in enumerate(demo_rows[:8])]
    trainer = ORPOTrainer(
        tiny_model, config, rows, rows[:4], tokenizer, callbacks=[MetricsFile(folder.metrics)]
    )
    trainer.train()
    entries = read_metrics(folder.metrics)
    assert any("eval/loss/orpo" in entry for entry in entries), json.dumps(entries)
    for entry in entries:
        for name in entry:
            plain = name.removeprefix("eval/")
            whole = plain.rpartition("/")[0] in (*BY_CATEGORY, "pairs")
            assert whole or plain in set(METRICS) | TRL | COUNTERS | CLOCKS, name
