"""Train, resume, evaluate and generate as people do it: on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.gpu.lines import Case, Found, Options, Skip
from benchmarks.gpu.material import SMOKE

ROOT = Path(__file__).parents[2]
LONG = 120  # seconds that no command here may take
TRAIN = (
    "train", "--model", str(SMOKE / "model"), "--data-path", str(SMOKE / "train.jsonl"),
    "--batch-size", "4", "--max-steps", "4", "--save-steps", "2", "--logging-steps", "1",
    "--save-strategy", "steps", "--lr", "1e-3", "--log", "none", "--scheduler", "constant",
    "--max-prompt-length", "64", "--max-completion-length", "64",
)  # fmt: skip
METHODS = {
    "full": (),
    "LoRA": ("--peft",),
    "int8": ("--peft", "--quantization", "int8"),
    "int4": ("--peft", "--quantization", "int4"),
}


def cases(options: Options) -> dict[str, Case]:
    found: dict[str, Case] = {}
    folder = Path(tempfile.mkdtemp())
    for method in ("full", "LoRA"):
        found[f"train, {method}"] = partial(train, method, folder)
        found[f"resume, {method}"] = partial(resume, method, folder)
        found[f"evaluate, {method}"] = partial(evaluate, method, folder)
        found[f"generate, {method}"] = partial(generate, method, folder)
    return found


def quantised(options: Options) -> dict[str, Case]:
    folder = Path(tempfile.mkdtemp())
    return {f"train, {method}": partial(train, method, folder) for method in ("int8", "int4")}


def command(*arguments: str) -> str:
    """Standard output; what went wrong as an exception of one line."""
    import pydantic  # noqa: F401  # or the command line itself ends in a traceback

    done = subprocess.run(
        [sys.executable, "-m", "orpo_dist", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if "which is not installed" in last or "needs bitsandbytes" in last:
            raise Skip(f"absent: {last.partition('needs ')[2].split(',')[0].split(':')[0]}")
        raise RuntimeError(last)
    return done.stdout


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [e["loss/orpo"] for e in map(json.loads, lines) if "loss/orpo" in e]


def train(method: str, folder: Path) -> Found:
    run = folder / method
    command(*TRAIN, *METHODS[method], "--project-name", str(run))
    first, *_, last = losses(run)
    return Found(last < first, f"loss {first:.3f} → {last:.3f}", {"first": first, "last": last})


def resume(method: str, folder: Path) -> Found:
    """From the checkpoint in the middle, to the same loss."""
    run, again = _trained(folder, method), folder / f"{method} again"
    command(
        *TRAIN, *METHODS[method], "--project-name", str(again),
        "--resume-from-checkpoint", str(run / "checkpoint-2"),
    )  # fmt: skip
    straight, resumed = losses(run)[-1], losses(again)[-1]
    apart = abs(straight - resumed)
    return Found(apart < 1e-3, f"last loss apart by {apart:.1e}", {"apart": apart})


def evaluate(method: str, folder: Path) -> Found:
    out = folder / f"{method}.json"
    command(
        "evaluate", str(_trained(folder, method)), "--data-path",
        str(SMOKE / "valid.jsonl"), "--json", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text(encoding="utf-8"))
    accuracy = float(_first(found, "preference_accuracy"))
    return Found(0 <= accuracy <= 1, f"accuracy {accuracy:.1%}", {"accuracy": accuracy})


def generate(method: str, folder: Path) -> Found:
    run = str(_trained(folder, method))
    text = command("generate", run, "--prompt", "Hello", "--max-new-tokens", "16")
    return Found(bool(text.strip()), f"{len(text.strip())} characters", {"characters": len(text)})


def _trained(folder: Path, method: str) -> Path:
    if not (folder / method / "checkpoint-2").is_dir():
        raise Skip("nothing was trained")
    return folder / method


def _first(tree: object, key: str) -> float:
    """The value of the first ``key`` anywhere in what JSON gave."""
    if isinstance(tree, dict):
        if isinstance(tree.get(key), (int, float)):
            return float(tree[key])
        tree = list(tree.values())
    for branch in tree if isinstance(tree, list) else []:
        try:
            return _first(branch, key)
        except KeyError:
            continue
    raise KeyError(key)
