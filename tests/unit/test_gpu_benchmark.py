"""``make gpu`` runs where there is no GPU too, and one check's failure stays its own."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.lines import Found, Skip, line_of, table
from tests.conftest import ROOT

ON_CPU = ("--device", "cpu", "--shape", "tiny")


def run(out: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *ON_CPU, *arguments, "--json", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(out.read_text())


def test_table_and_json_say_the_same(tmp_path: Path) -> None:
    shown, found = run(tmp_path / "out.json", "--only", "kernel", "exactness", "full")
    lines = {line["case"]: line for line in found["lines"]}
    assert all(line["status"] == "PASS" for line in lines.values())
    for name, line in lines.items():
        assert any(name in row and line["figure"] in row for row in shown.splitlines())
    assert lines["head size 192"]["values"]["backward"] < 1e-2
    assert lines["proof of packing, bf16, Gemma 2"]["values"]["packed"] == 20
    assert lines["1B full, 512 tokens"]["values"]["mfu"] is None  # no data sheet for a CPU
    assert found["machine"]["torch"] == torch.__version__
    assert str(ROOT) not in json.dumps(found)


@pytest.mark.slow
def test_every_check_on_a_cpu(tmp_path: Path) -> None:
    _, found = run(tmp_path / "out.json")
    assert {line["check"] for line in found["lines"]} == set(gpu.CHECKS)
    assert all(line["status"] != "FAIL" for line in found["lines"])
    skipped = {line["case"] for line in found["lines"] if line["status"] == "SKIP"}
    assert {"waits of the host", "token budget against the plan"} <= skipped
    assert found["seconds"] < gpu.TOTAL
    lines = {line["case"]: line for line in found["lines"]}
    apart = lines["packed, 256 tokens"]["values"]["loss"]
    assert lines["TRL, micro-batches of 8"]["values"]["loss"] == pytest.approx(apart, abs=0.01)


@pytest.mark.parametrize(
    ("error", "status", "figure"),
    [
        (Skip("needs a GPU"), "SKIP", "needs a GPU"),
        (ModuleNotFoundError("no", name="trl.experimental"), "SKIP", "absent: trl"),
        (ModuleNotFoundError("no", name="orpo_dist.x"), "FAIL", "absent: orpo_dist"),
        (torch.OutOfMemoryError("no"), "SKIP", "does not fit"),
        (ValueError("first\nsecond"), "FAIL", "ValueError: first"),
    ],
)
def test_what_goes_wrong_is_a_line(error: Exception, status: str, figure: str) -> None:
    def case() -> Found:
        raise error

    line = line_of("check", "case", case)
    assert (line.status, line.figure) == (status, figure)
    assert figure in table([line])


def test_a_wrong_figure_fails() -> None:
    assert line_of("check", "case", lambda: Found(False, "0.5", {})).status == "FAIL"


def test_a_check_that_takes_too_long_keeps_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.CHECKS, "commands", ("commands:cases", 11))
    (*done, last) = gpu.run_apart("commands", Namespace(device="cpu", shape="tiny"), 600)
    assert last.status == "FAIL" and "stopped after 11 s" in last.figure
    assert len(done) < 8
    (none,) = gpu.run_apart("commands", Namespace(device="cpu", shape="tiny"), 15)
    assert none.status == "SKIP"


def test_a_check_without_its_gpu_fails_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (line,) = gpu.run_apart("kernel", Namespace(device="cuda", shape="tiny"), 600)
    assert line.status == "FAIL" and "no GPU" in line.figure
