"""``orpo-dist plan``: what is printed and written, and its mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import cli
from tests.unit.planning.plans import MODELS, plan

# --- what is printed and written


def test_launch_line_and_batch_script_say_what_was_planned(capsys: Any, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    printed, found = plan(
        capsys, tmp_path, "--model", str(MODELS / "llama-2-7b"), "--gpus", "16",
        "--gpu-memory", "80", "--max-completion-length", "512", "--lr", "5e-6",
        "--batch-size", "16", "--pairs", "1000", "--sbatch", str(script), "--asked-only",
        "--max-tokens-per-microbatch", "none",
    )  # fmt: skip
    chosen = found["chosen"]
    assert chosen["pairs"] < 16  # what fits, which the line must say
    assert f"--max-tokens-per-microbatch {chosen['tokens']}" in printed
    assert "--num-processes 16 --num-machines 2 --machine-rank RANK" in printed
    text = script.read_text(encoding="utf-8")
    assert "#SBATCH --nodes=2\n" in text
    assert f"ORPO_PRESET:-{chosen['preset']}}}" in text
    shown = subprocess.run(
        [str(shutil.which("bash")), str(script), "--dry-run"],
        check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **python_here()},
    ).stdout  # fmt: skip
    assert "orpo_dist.launch.accelerate launch" in shown
    assert "--lr 5e-6" in shown


def python_here() -> dict[str, str]:
    import sys

    return {"ORPO_PYTHON": sys.executable, "PYTHONPATH": str(Path(__file__).parents[3])}


def test_data_of_the_run_are_counted(capsys: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [{"prompt": "Say hi", "chosen": "hello " * n, "rejected": "no"} for n in range(1, 41)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    printed, _ = plan(
        capsys, tmp_path, "--model", str(tiny_model_dir), "--data-path", str(path), "--gpus", "0",
        "--host-memory", "8", "--global-batch-size", "8", "--tokens-per-second", "1000",
    )  # fmt: skip
    assert "the run: 15 steps" in printed  # 3 epochs of 40 pairs, 8 a step
    assert "1000 tokens/s a process, as stated" in printed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "nothing to plan"),
        (["--model", "MODEL", "--gpu-memory", "80"], "how many GPUs"),
        (["--model", "MODEL", "--gpus", "8"], "--gpu-memory is missing"),
        (["--model", "MODEL", "--gpus", "-1"], "must be 0"),
        (["--model", "MODEL", "--gpus", "1", "--gpu-memory", "0"], "must be above 0"),
        (
            ["--model", "MODEL", "--gpus", "1", "--gpu-memory", "9", "--gpu-type", "Z9"],
            "data sheet",
        ),
        (["--model", "MODEL", "--gpus", "0", "--from-run", "nowhere"], "no tokens_per_second"),
        (["--model", "MODEL", "--gpus", "0", "--json", "no/such/x.json"], "does not exist"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], complaint: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = [str(MODELS / "smollm2-135m") if word == "MODEL" else word for word in words]
    assert cli.main(["plan", *words]) == 2
    errors = capsys.readouterr().err
    assert complaint in errors
    assert "Traceback" not in errors
