"""One pair's way through the package: the modules at work from a file's line to the gradient.

    python scripts/walk.py                  # of these files
    python scripts/walk.py --tree 29d45a9   # of an earlier revision
    python scripts/walk.py --write          # the walk in docs/architecture.md

Makes one step of a real training on the CPU and notes which modules run, in the order of their
first call, while rows become token ids (``prepare``), token ids a step's batches (its sampler and
dataset) and batches gradients (``training_step``). Loading, the proof of the packed path and files
of the run are not on the way of a pair.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from rooms import PACKAGE, PAGE, ROOT, between, unpack

LEGS = {
    "prepare": "From rows to token ids",
    "StepSampler.__iter__": "From token ids to the batches of a step",
    "StepDataset.__getitem__": "From token ids to the batches of a step",
    "ORPOTrainer.training_step": "From batches to the gradient",
}
SMOKE = ROOT / PACKAGE / "sweeps" / "presets" / "smoke"

Walk = dict[str, dict[str, str]]  # leg -> module -> the function in which a pair enters it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tree", metavar="REV", help="walk through this revision")
    parser.add_argument("--write", action="store_true", help=f"bring {PAGE} up to date")
    parser.add_argument("--in", dest="root", help=argparse.SUPPRESS)  # this process is to walk
    options = parser.parse_args()
    if options.root:
        print(json.dumps(walk(Path(options.root))))
    elif options.tree:
        with tempfile.TemporaryDirectory() as folder:
            unpack(options.tree, Path(folder))
            print(told(walked(Path(folder))), end="")
    else:
        found = walked(ROOT)
        print(told(found), end="")
        if options.write:
            between("walk", page(found))


def walked(root: Path) -> Walk:
    """The walk through a checkout, made in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        here = {"PYTHONPATH": str(root), "ORPO_DIST_CACHE": folder, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, "--in", str(root)]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | here, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def walk(root: Path) -> Walk:
    """Train one step, and watch where its pairs go."""
    from orpo_dist import ORPOConfig, train

    config = ORPOConfig(
        model=str(SMOKE / "model"), data_path=[str(SMOKE / "train.jsonl")], max_steps=1, log="none"
    )
    watch = Watch(root / PACKAGE)
    sys.setprofile(watch)
    train(config)
    sys.setprofile(None)
    return watch.legs


class Watch:
    """A profile function that notes modules while a function of ``LEGS`` is under way."""

    def __init__(self, package: Path):
        self.package = str(package.resolve()) + os.sep
        self.legs: Walk = {leg: {} for leg in LEGS.values()}
        self.open: list[tuple[FrameType, str]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and self.open and self.open[-1][0] is frame:
            self.open.pop()
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(self.package):
            return
        if leg := LEGS.get(code.co_qualname):
            self.open.append((frame, leg))
        if self.open and code.co_name != "<module>":  # an import is no work
            module = code.co_filename.removeprefix(self.package)
            self.legs[self.open[-1][1]].setdefault(module, code.co_qualname)


def counted(found: Walk) -> str:
    """The figures as one sentence, as they stand on the page."""
    modules = set().union(*found.values())
    rooms = {module.split("/")[0] for module in modules}
    return f"{len(modules)} modules in {len(rooms)} rooms."


def told(found: Walk) -> str:
    lines = [counted(found)]
    for leg, modules in found.items():
        lines += [f"{leg}: {len(modules)}", *(f"  {m} {at}" for m, at in modules.items())]
    return "\n".join(lines) + "\n"


def page(found: Walk) -> str:
    """The walk in Markdown: every module, where a pair enters it, and what it says of itself."""
    lines = [counted(found)]
    seen: set[str] = set()
    for leg, modules in found.items():
        lines += ["", f"**{leg}**", "", "| module | enters at | |", "|---|---|---|"]
        for module, function in modules.items():
            at = function.replace(".<locals>", "")
            text = (ROOT / PACKAGE / module).read_text(encoding="utf-8")
            said = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
            said = "again" if module in seen else " ".join(said.split()).replace("``", "`")
            lines.append(f"| [{module}](../{PACKAGE}/{module}) | `{at}` | {said} |")
        seen |= set(modules)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
