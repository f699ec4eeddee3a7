"""What a sweep costs beyond its trainings: trials of a known length, real Ray, real workers.

    python benchmarks/sweep_overhead.py --trials 16 --seconds 20 --slots 2 --workers 2

Everything is as in any sweep (driver, trial processes, worker groups with a process group of their
own, torch imported in every worker) but for ``run.train``, in whose place workers sleep for a known
time and report five evaluations. So the training itself takes nothing from the cores that start the
next trial, as on a GPU machine. Prints a table, and from its figures what 1000 trials would cost.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from orpo_dist.sweeps.protocol import folder_of, read_trials
from orpo_dist.sweeps.searched.files import load_sweep

ROOT = Path(__file__).parents[1]
# Python runs this at the start of every process; in Ray's workers, run.train becomes a sleep.
SLEEPER = """
import sys
if any("default_worker.py" in word for word in sys.orig_argv):
    import types
    run = types.ModuleType("orpo_dist.training.run")

    def train(config, callbacks=()):
        import os, time
        import torch, transformers
        from pathlib import Path
        from types import SimpleNamespace
        from orpo_dist.runs.folder import RunFolder
        first = os.environ.get("RANK") in (None, "0")
        began, folder = time.time(), RunFolder(config.project_name, first)
        Path(config.project_name).mkdir(parents=True, exist_ok=True)
        folder.write_config(config)
        metrics = {"eval_loss/sft": 1.0, "eval_rewards/accuracies": 0.5}
        for part in range(1, 6):
            time.sleep(config.max_steps / 5)
            state = SimpleNamespace(global_step=part, max_steps=5)
            args = SimpleNamespace(output_dir=config.project_name)
            for callback in callbacks:
                callback.on_evaluate(args, state, None, metrics=metrics)
                callback.on_save(args, state, None)
        named = {k.replace("eval_", "eval/"): v for k, v in metrics.items()}
        folder.update_run(status="completed", started=began, ended=time.time(), metrics=named)
        return SimpleNamespace(metrics=named)

    run.train = train
    sys.modules["orpo_dist.training.run"] = run
"""


def measure(trials: int, seconds: int, slots: int, workers: int, folder: Path) -> dict[str, float]:
    """One sweep; its figures in seconds."""
    (folder / "sitecustomize.py").write_text(SLEEPER)
    cores = len(os.sched_getaffinity(0))
    content = {
        "base": {
            **load_sweep("smoke").base,
            "max_steps": seconds,
            "project_name": str(folder / "s"),
        },
        "space": {"seed": {"grid": list(range(trials))}},
        "workers_per_trial": workers,
        "resources_per_worker": {"CPU": cores / (slots * workers)},
        "max_concurrent_trials": slots,
        "metric": "loss/sft",
    }
    (folder / "overhead.yaml").write_text(yaml.safe_dump(content))
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    began = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "orpo_dist", "sweep", str(folder / "overhead.yaml")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    busy = watch_cpu(process)
    total = time.time() - began
    assert process.wait() == 0, "the sweep has failed"
    runs = [
        json.loads((folder_of(folder / "s", trial.name) / "run.json").read_text())
        for trial in read_trials(folder / "s")
    ]
    assert len(runs) == trials
    first = min(run["started"] for run in runs)
    last = max(run["ended"] for run in runs)
    waves = -(-trials // slots)
    ideal = waves * seconds
    return {
        "trials": trials, "seconds each": seconds, "slots": slots, "workers each": workers,
        "sum of trials ÷ slots": ideal, "total": total, "overhead": total - ideal,
        "before the first step": first - began, "after the last step": began + total - last,
        "between two trials of a slot": (last - first - ideal) / max(1, waves - 1),
        "driver CPU per report": (cpu_at(busy, last) - cpu_at(busy, first)) / (5 * trials),
    }  # fmt: skip


def watch_cpu(process: subprocess.Popen[bytes]) -> list[tuple[float, float]]:
    """Times of day, and the CPU seconds that the process itself had used by then, until it ends."""
    samples: list[tuple[float, float]] = []
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            samples.append((time.time(), sum(driver.cpu_times()[:2])))
        except psutil.Error:
            break
        time.sleep(0.2)
    return samples


def cpu_at(samples: list[tuple[float, float]], moment: float) -> float:
    """CPU seconds used by then: start and end of the driver, which do not recur, are left out."""
    return max(cpu for at, cpu in samples if at <= moment)


def simulate(
    trials: int, seconds: float, slots: int, change: float, per_report: float, reports: int
) -> float:
    """Seconds until all trials are over.

    Every slot loses ``change`` between two trials; the driver handles reports and starts in turn.
    """
    free = [0.0] * slots
    heapq.heapify(free)
    driver, end = 0.0, 0.0
    for _ in range(trials):
        driver = max(driver, heapq.heappop(free)) + per_report * (reports + 1)
        over = driver + change + seconds
        end = max(end, over)
        heapq.heappush(free, over)
    return end


def main() -> None:
    """Measure, print, extrapolate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("trials", 16), ("seconds", 20), ("slots", 2), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(
            options.trials, options.seconds, options.slots, options.workers, Path(scratch)
        )
    for name, value in found.items():
        print(f"{name:<30}{value:>10.3f}" if isinstance(value, float) else f"{name:<30}{value:>10}")
    change, cost = found["between two trials of a slot"], found["driver CPU per report"]
    print("\n1000 trials of 8 GPUs, 20 evaluations each, by these figures:")
    print(f"{'GPUs':>6}{'slots':>7}{'hours a trial':>15}{'ideal h':>10}{'total h':>10}{'lost':>8}")
    for slots in (16, 64, 128):
        for hours in (0.1, 1.0):
            total = simulate(1000, hours * 3600, slots, change, cost, 20) / 3600
            ideal = -(-1000 // slots) * hours
            print(f"{slots * 8:>6}{slots:>7}{hours:>15}{ideal:>10.2f}{total:>10.2f}"
                  f"{total / ideal - 1:>8.1%}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
