"""Six small runs, before and after a refactor: losses and final weights equal to the last digit.

    python benchmarks/to_the_digit.py --out before.json     # on the old tree
    python benchmarks/to_the_digit.py --against before.json # on the new one; exit 1: they differ

One process, two under DDP, ZeRO-2, ZeRO-3 and FSDP2, and one trial of a sweep, on the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "orpo_dist" / "sweeps" / "presets" / "smoke"
SETTINGS = {
    "model": str(SMOKE / "model"), "data_path": str(SMOKE / "train.jsonl"), "max_steps": 8,
    "valid_data_path": str(SMOKE / "valid.jsonl"), "eval_strategy": "steps", "eval_steps": 4,
    "batch_size": 2, "global_batch_size": 8, "lr": 1e-3, "warmup_ratio": 0.25, "log": "none",
    "max_tokens_per_microbatch": 400, "mixed_precision": "none", "logging_steps": 1,
}  # fmt: skip
ENGINES = ("ddp", "zero2", "zero3", "fsdp2")
TIMES = ("second", "runtime", "mfu")  # in names of what no two runs have alike

Found = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", metavar="FILE", help="write what was found")
    parser.add_argument("--against", metavar="FILE", help="compare with what was found earlier")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = six_runs(Path(scratch))
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not options.against:
        return 0
    before = json.loads(Path(options.against).read_text(encoding="utf-8"))
    different = [name for name in before if before[name] != found.get(name)]
    for name in before:
        print(f"{name:8} {'DIFFERS' if name in different else 'equal to the last digit'}")
    return int(bool(different))


def six_runs(scratch: Path) -> dict[str, Found]:
    found: dict[str, Found] = {}
    (scratch / "run.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    for name in ("single", *ENGINES):
        folder = scratch / name
        command = ["train", "--config", str(scratch / "run.json"), "--project-name", str(folder)]
        if name != "single":
            command = ["launch", name, "--num-processes", "2", "--", *command]
        _run(command)
        found[name] = found_in(folder)
        print(name, found[name]["weights"][:12], file=sys.stderr, flush=True)
    _run(["sweep", str(_sweep(scratch))])
    (trial,) = {path.parent for path in scratch.glob("sweep/**/metrics.jsonl")}
    found["trial"] = found_in(trial)
    return found


def _sweep(scratch: Path) -> Path:
    base = SETTINGS | {"project_name": str(scratch / "sweep")}
    base = {k: v for k, v in base.items() if k not in ("lr",)}
    sweep = {
        "base": base, "space": {"lr": {"grid": [1e-3]}}, "metric": "loss/sft",
        "workers_per_trial": 2, "resources_per_worker": {"CPU": 0.5}, "max_concurrent_trials": 1,
        "keep_models": "all",
    }  # fmt: skip
    file = scratch / "sweep.yaml"
    file.write_text(json.dumps(sweep), encoding="utf-8")
    return file


def _run(command: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "orpo_dist", *command], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"orpo-dist {' '.join(command)}:\n{done.stderr[-2000:]}")


def found_in(folder: Path) -> Found:
    """Every logged number that is no time, and a hash of all weights."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [
        {k: v for k, v in json.loads(line).items() if not any(word in k for word in TIMES)}
        for line in lines
    ]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("model*.safetensors")):
        if "checkpoint" not in str(file):
            digest.update(file.read_bytes())
    return {"logged": logged, "weights": digest.hexdigest()}


if __name__ == "__main__":
    sys.exit(main())
