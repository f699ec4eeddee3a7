"""A dozen faults of the campaign (``make faults`` injects hundreds), and how it judges."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.faults.campaign import judged
from tests.faults.processes import Attempt


def test_a_dozen_faults_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.campaign", "--kills", "12", "--seed", "15"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 15" in done.stdout


@pytest.mark.parametrize(
    ("code", "said", "verdict"),
    [(0, "", "survived"), (2, "orpo-dist: error: no", "refused"), (1, "", "lost"),
     (2, "Traceback (most", "lost"), (-9, "", "lost")],
)  # fmt: skip
def test_how_a_chain_is_judged(code: int, said: str, verdict: str, tmp_path: Path) -> None:
    for name in ("whole", "mine"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(3)}, tmp_path / name / "model.safetensors")
    assert judged(Attempt(code, said), tmp_path / "mine", tmp_path / "whole") == verdict


def test_other_weights_and_a_missing_step_are_wrong(tmp_path: Path) -> None:
    whole, mine = tmp_path / "whole", tmp_path / "mine"
    whole.mkdir()
    save_file({"w": torch.ones(3)}, whole / "model.safetensors")
    (whole / "metrics.jsonl").write_text('{"step": 1, "loss/orpo": 2.0}\n')
    shutil.copytree(whole, mine)
    assert judged(Attempt(0, ""), mine, whole) == "survived"
    save_file({"w": load_file(mine / "model.safetensors")["w"] * 1.01}, mine / "model.safetensors")
    assert judged(Attempt(0, ""), mine, whole) == "wrong"
    shutil.copy(whole / "model.safetensors", mine)
    (mine / "metrics.jsonl").write_text("")
    assert judged(Attempt(0, ""), mine, whole) == "wrong"
