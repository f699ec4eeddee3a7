"""Members out of a sweep: good ones that differ; trained by one or taken from one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_dist import UserError, evaluate_model, load_ensemble
from orpo_dist.cli import main
from orpo_dist.ensembles.listing import Listed, find_members, read_listing, write_listing
from orpo_dist.ensembles.picking import Candidate, pick_by_pairs, pick_by_settings
from orpo_dist.sweeps.protocol import folder_of
from tests.conftest import DEMO
from tests.launching import run
from tests.sweeps.folders import make_sweep, trial

EVAL = str(DEMO / "eval.jsonl")


def test_every_setting_before_a_second_seed() -> None:
    found = [
        Candidate(path, settings, value)
        for path, settings, value in (
            ("a1", "a", 0.9), ("a2", "a", 0.8), ("b1", "b", 0.7), ("a3", "a", 0.6), ("b2", "b", 0.5)
        )
    ]  # fmt: skip
    assert [c.path for c in pick_by_settings(found, 4)] == ["a1", "b1", "a2", "b2"]
    assert [c.path for c in pick_by_settings(found, 9)] == ["a1", "b1", "a2", "b2", "a3"]


def test_a_member_that_errs_elsewhere_beats_a_better_one_that_errs_alike() -> None:
    margins = np.array([
        [1.0, 1.0, 1.0, 1.0, -0.5],  # right on four
        [1.0, 1.0, 1.0, 1.0, -0.5],  # right on the same four
        [-0.5, -0.5, 1.0, 1.0, 1.0],  # right on three, the fifth among them
    ])  # fmt: skip
    assert pick_by_pairs(margins, 2) == [0, 2]
    assert sorted(pick_by_pairs(margins, 9)) == [0, 1, 2]
    assert pick_by_pairs(margins[:2], 1) == [0]


def test_a_listing_can_move_and_is_checked(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = tmp_path / "ensemble"
    (folder / "inner").mkdir(parents=True)
    write_listing(
        folder, [Listed(str(folder / "inner"), 2.0), Listed(str(tiny_model_dir)), Listed("org/x")]
    )
    folder = folder.rename(tmp_path / "moved")
    assert read_listing(folder) == [
        Listed(str(folder / "inner"), 2.0), Listed(str(tiny_model_dir)), Listed("org/x")
    ]  # fmt: skip
    assert [m.weight for m in find_members([str(folder)], [1, 2, 3])] == [1, 2, 3]
    for text in ("{", '{"members": []}', '{"members": [{"path": 3}]}', '{"members": 1}',
                 '{"members": [{"path": "a", "weight": true}]}', "[]"):  # fmt: skip
        (folder / "ensemble.json").write_text(text)
        with pytest.raises(UserError, match=r"ensemble\.json"):
            read_listing(folder)


@pytest.fixture
def project(tiny_model_dir: Path, other_model_dirs: list[Path], tmp_path: Path) -> Path:
    """A finished sweep of two alphas with two seeds; the best trial has not kept its model."""
    content = {"space": {"orpo_alpha": {"grid": [0.1, 1.0]}}, "repeats": 2}
    trials = [
        trial("0", 0.9, 4.0, orpo_alpha=0.1, seed=1), trial("1", 0.8, 4.0, orpo_alpha=0.1, seed=2),
        trial("2", 0.7, 4.0, orpo_alpha=0.1, seed=3), trial("3", 0.6, 4.0, orpo_alpha=1.0, seed=1),
        trial("4", 0.99, 4.0, orpo_alpha=1.0, seed=2, status="failed"),
    ]  # fmt: skip
    folder = make_sweep(tmp_path / "sweep", content, *trials)
    models = [tiny_model_dir, *other_model_dirs]
    for name, model in zip(("1", "2", "3"), models, strict=True):
        shutil.copytree(model, folder_of(folder, name), dirs_exist_ok=True)
    return folder


def test_members_of_a_sweep_by_their_settings(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ensemble", "train", "--from-sweep", str(project), "--top-k", "2"]) == 0
    paths = [member.path for member in read_listing(project)]
    assert paths == [str(folder_of(project, name)) for name in ("1", "3")]
    assert str(project / "ensemble.json") in capsys.readouterr().out
    assert json.loads((project / "ensemble.json").read_text())["members"][0]["path"][:2] == "./"
    assert load_ensemble(project).generate("Hi", max_new_tokens=2)


def test_members_of_a_sweep_by_what_they_get_wrong(project: Path, tmp_path: Path) -> None:
    words = ["ensemble", "train", "--from-sweep", str(project), "--pick-on", EVAL]
    assert main([*words, "--output", str(tmp_path / "picked")]) == 0
    picked = [member.path for member in read_listing(tmp_path / "picked")]
    assert len(picked) == 3
    accuracy = {
        path: evaluate_model(path, EVAL, progress=False)["preference_accuracy"] for path in picked
    }
    assert accuracy[picked[0]] == max(accuracy.values())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "needs a sweep file, or --from-sweep"),
        (["smoke", "--from-sweep", "x"], "needs a sweep file, or --from-sweep"),
        (["--from-sweep", "x", "--top-k", "0"], "--top-k 0"),
        (["--from-sweep", "x", "--lr", "1"], "--lr: with --from-sweep nothing is trained"),
        (["--from-sweep", "./nowhere"], "nowhere: is not the folder of a sweep"),
        (["nonsense"], "sweep 'nonsense': no such file"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", "train", *words]) == 2
    assert part in capsys.readouterr().err


def test_a_sweep_that_kept_no_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for weights in project.rglob("*.safetensors"):
        weights.unlink()
    assert main(["ensemble", "train", "--from-sweep", str(project)]) == 2
    assert "kept its model" in capsys.readouterr().err


@pytest.mark.slow
def test_members_are_trained_side_by_side_and_answer(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Through Ray: two alphas and two ranks of adapters, all of them members."""
    file = tmp_path / "members.yaml"
    project = tmp_path / "members"
    content: dict[str, Any] = {
        "base": {
            "model": str(tiny_model_dir), "data_path": str(DEMO / "train.jsonl"),
            "valid_data_path": EVAL, "peft": True, "max_steps": 2, "batch_size": 4,
            "gradient_accumulation": 1, "log": "none", "project_name": str(project),
        },
        "space": {"orpo_alpha": {"grid": [0.1, 1.0]}, "lora_r": {"grid": [2, 4]}},
        "resources_per_worker": {"CPU": 0.5},
    }  # fmt: skip
    file.write_text(json.dumps(content))
    run([sys.executable, "-m", "orpo_dist", "ensemble", "train", str(file)])
    members = read_listing(project)
    assert len(members) == 4
    ensemble = load_ensemble(project, "vote")
    assert len({id(member.handle.model) for member in ensemble.members}) == 1
    assert ensemble.generate("Hi", max_new_tokens=2)
