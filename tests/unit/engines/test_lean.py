"""Training from a file needs no more packages than it uses; others are missed by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import DEMO, ROOT

# As if these were not installed.
WITHOUT = """
import sys
for name in ("datasets", "matplotlib", "tensorboard", "tensorboardX", "scipy", "peft", "pyarrow",
             "psutil", "bitsandbytes", "trl", "deepspeed", "ray", "optuna", "pandas"):
    sys.modules[name] = None
from orpo_dist.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_training_from_a_file_needs_nothing_that_it_does_not_use(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", str(DEMO / "eval.jsonl")
    done = without(
        "train", "--model", str(tiny_model_dir), "--data-path", data, "--max-steps", "2",
        "--max-prompt-length", "32", "--max-completion-length", "32", "--batch-size", "2",
        "--project-name", str(run),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tensorboard is not installed" in done.stderr
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert "matplotlib is not installed" in (run / "report.html").read_text()


def test_what_is_missing_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    for flags, package in (
        (["--data-path", "someone/pairs"], "datasets"),
        (["--data-path", str(DEMO / "eval.jsonl"), "--peft"], "peft"),
    ):
        folder = str(tmp_path / package)
        model = ["--model", str(tiny_model_dir), "--project-name", folder]
        done = without("train", *model, *flags)
        assert done.returncode == 2, done.stderr
        assert f"error: this needs {package}, which is not installed" in done.stderr
        assert "Traceback" not in done.stderr
