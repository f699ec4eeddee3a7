"""Ensembles at their edges: precisions, contexts, empty answers, broken members, names."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from orpo_dist import UserError, load, load_ensemble
from orpo_dist.cli import main
from orpo_dist.ensembles.evaluate import evaluate_ensemble
from tests.conftest import DEMO

EVAL = str(DEMO / "eval.jsonl")


def test_a_base_is_not_shared_between_precisions(adapter_dirs: list[Path], tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(adapter_dirs[0], half)
    (half / "config.yaml").write_text("mixed_precision: bf16\n")
    first, second = load_ensemble([half, adapter_dirs[1]], "vote").members
    assert first.handle.model is not second.handle.model
    assert second.handle.model.dtype == torch.float32
    both = load_ensemble([half, adapter_dirs[1]], "vote", settings={"mixed_precision": "none"})
    assert both.members[0].handle.model is both.members[1].handle.model


def test_the_average_takes_what_all_its_members_take(tiny_model_dir: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_model_dir, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    with pytest.raises(UserError, match="over the model's context of 32"):
        load_ensemble([tiny_model_dir, short]).generate("Hi", max_new_tokens=60)


def test_answers_up_to_the_end_of_the_context_are_scored(tiny_model_dir: Path) -> None:
    alone, ensemble = load(tiny_model_dir), load_ensemble(tiny_model_dir, "vote")
    context = alone.model.config.max_position_embeddings
    words = "a b " * context
    assert np.isfinite(ensemble.scores("Hi", [words, "b"])).all()
    with pytest.raises(UserError, match=f"over the model's context of {context}"):
        ensemble.scores(words, ["a"])


@pytest.mark.parametrize("method", ["average", "vote", "best_of"])
def test_an_empty_completion_has_no_score(method: Any, tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match="completion: is empty"):
        load_ensemble(tiny_model_dir, method).score("Hi", "")


def test_a_member_without_finite_weights_is_named(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(tiny_model_dir).model
    model.get_input_embeddings().weight.data.fill_(math.nan)
    model.save_pretrained(tmp_path / "lost")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "lost")
    lost = str(tmp_path / "lost")
    with pytest.raises(UserError, match="lost: scores NaN; its weights are not finite"):
        load_ensemble([tiny_model_dir, lost], "vote").scores("Hi", ["you"])
    for words in (["evaluate", lost], ["ensemble", "evaluate", str(tiny_model_dir), lost]):
        assert main([*words, "--data-path", EVAL]) == 2
        assert "lost: 64 of 64 pairs score NaN; its weights" in capsys.readouterr().err


def test_names_that_mean_something_else_are_refused(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, part in (
        ({"method": "votes"}, "method 'votes': choose one of average, vote, best_of"),
        ({"average_of": "probs"}, "average_of 'probs': choose one of probabilities, logits"),
        ({"criterion": "odd"}, "criterion 'odd': choose one of logp, odds"),
    ):
        with pytest.raises(UserError, match=part):
            load_ensemble(tiny_model_dir, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one member"):
        load_ensemble([])
    with pytest.raises(UserError, match="num_return_sequences: vote writes one answer"):
        load_ensemble(tiny_model_dir, "vote").generate("Hi", num_return_sequences=2)
    with pytest.raises(UserError, match="is given twice"):
        load_ensemble([tiny_model_dir, f"{tiny_model_dir}/"])
    (tmp_path / "vote").symlink_to(tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"member vote: is the name of a method; say \./vote"):
        evaluate_ensemble(load_ensemble("vote"), EVAL, progress=False)
    found = evaluate_ensemble(load_ensemble("./vote"), EVAL, ["vote"], progress=False)
    assert list(found["models"]) == ["./vote", "vote"]
