"""One table of what holds on this machine's GPU, a figure a line.

    make gpu                                        # the current python3, or PYTHON=...
    python -m benchmarks.gpu --device cpu --shape tiny

Installs nothing: what is absent is named, and its lines are skipped. Every check runs in a process
of its own under its own time limit, all of them in less than ten minutes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.lines import OPTIONAL, Line, Options, line_of, table

TOTAL = 600  # seconds, with the start of the last process
# Name, the function that gives its cases, and the seconds it may take. What matters most is first.
CHECKS = {
    "kernel": ("kernel:cases", 60),
    "head": ("head:cases", 60),
    "exactness": ("exactness:cases", 90),
    "training": ("training:cases", 120),
    "commands": ("commands:cases", 180),
    "full": ("speed:full", 90),
    "LoRA": ("speed:lora", 120),
    "beside": ("speed:beside", 120),
    "quantised": ("commands:quantised", 60),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=("real", "tiny"), default="real")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("--lines", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    options = Options(arguments.device, arguments.shape == "tiny")
    if arguments.child:
        run_here(arguments.child, options, Path(arguments.lines))
        return 0
    missing = [f"absent: {name}" for name in OPTIONAL if importlib.util.find_spec(name) is None]
    machine = about(options)
    print("\n".join([*(f"{key}: {value}" for key, value in machine.items()), *missing, ""]))
    began, lines = time.monotonic(), []
    for name in arguments.only:
        found = run_apart(name, arguments, TOTAL - (time.monotonic() - began))
        lines += found
        print(f"{name}: {len(found)} lines", file=sys.stderr, flush=True)
    print(table(lines))
    counts = {s: sum(line.status == s for line in lines) for s in ("PASS", "FAIL", "SKIP")}
    seconds = round(time.monotonic() - began)
    print("\n" + ", ".join(f"{n} {status}" for status, n in counts.items()) + f", {seconds} s")
    if arguments.json:
        result = {"machine": machine, "absent": missing, "seconds": seconds}
        result["lines"] = [line.as_json() for line in lines]
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if counts["FAIL"] else 0


def about(options: Options) -> dict[str, str]:
    """Names and versions, no paths."""
    found = {"device": platform.machine(), "python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", *OPTIONAL):
        if importlib.util.find_spec(name) is not None:
            found[name] = importlib.metadata.version(name.replace("_", "-"))
    if options.device == "cuda":
        import torch

        gpu = torch.cuda.is_available()
        found["device"] = torch.cuda.get_device_name() if gpu else "no GPU that torch can use"
        found["cuda"] = str(torch.version.cuda)
    return found


def run_here(name: str, options: Options, out: Path) -> None:
    """The cases of one check; each line is written as soon as it is known."""
    place, _ = CHECKS[name]
    module, _, function = place.partition(":")
    if options.device == "cuda":
        import torch

        assert torch.cuda.is_available(), "no GPU that torch can use (try --device cpu)"
    cases = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(options)
    with out.open("a", encoding="utf-8") as lines:
        for case, run in cases.items():
            print(json.dumps(line_of(name, case, run).as_json()), file=lines, flush=True)


def run_apart(name: str, arguments: Any, left: float) -> list[Line]:
    """A check in a process of its own: what it has found, and how it ended if not well."""
    limit = min(CHECKS[name][1], left - 10)
    if limit < 10:
        return [Line(name, "", "SKIP", f"no time left of {TOTAL} s")]
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "lines"), Path(folder, "errors")
        out.touch()
        seen = "" if arguments.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": seen, "HF_HUB_OFFLINE": "1"}
        with errors.open("wb") as stderr:
            child = subprocess.Popen(
                [
                    sys.executable, "-m", "benchmarks.gpu", "--child", name, "--lines", str(out),
                    "--device", arguments.device, "--shape", arguments.shape,
                ],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=env,
                start_new_session=True,
            )  # fmt: skip
            try:
                child.wait(limit)
            except BaseException as error:
                os.killpg(child.pid, signal.SIGKILL)  # with the commands it started
                child.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
        lines = [Line(**json.loads(text)) for text in out.read_text("utf-8").splitlines()]
        if child.returncode:
            told = errors.read_text("utf-8", "replace").strip().splitlines() or ["died"]
            timed_out = child.returncode == -signal.SIGKILL
            why = f"stopped after {limit:.0f} s" if timed_out else told[-1][:160]
            lines.append(Line(name, "", "FAIL", why))
    return lines


if __name__ == "__main__":
    sys.exit(main())
