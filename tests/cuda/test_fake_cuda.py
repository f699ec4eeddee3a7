"""The CUDA branch without a GPU: fake tensors on cuda:0, forward and backward.

Needs a CUDA build of torch: the installed one, or one in the folder that ORPO_CUDA_TORCH names
(``make test-fake-cuda`` makes it). A tensor on the wrong device fails by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

FOLDER = os.environ.get("ORPO_CUDA_TORCH")

# What a micro-batch may cost at most. Lower these where the code does better, and never raise them.
COPIES = 1
OPERATIONS_PER_LAYER = {
    "full": 153,
    "full, checkpointing": 201,
    "full, half weights": 127,
    "lora": 242,
    "lora, checkpointing": 334,
    "mistral": 153,
    "qwen2": 162,
    "gemma3": 255,
}
OPERATIONS_OUTSIDE_LAYERS = {
    "full": 151,
    "lora": 117,
    "full, head in chunks": 205,
    "full, plain head": 161,
    "full, plain head in chunks": 275,
    "gemma2": 126,
    "gemma2, plain head": 142,
}
WAITS = {"full, several tasks": 1}  # everywhere else none


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case of ``trace.py``, run in a process of its own over a driver that does nothing."""
    if FOLDER is None and torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch: 'make test-fake-cuda', or ORPO_CUDA_TORCH=FOLDER")
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler (cc)")
    stub = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = str(Path(__file__).with_name("driver.c"))
    subprocess.run(
        [
            shutil.which("cc") or "cc",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{stub.name}",
            source,
            "-o",
            stub,
        ],
        check=True,
    )
    paths = [*([FOLDER] if FOLDER else []), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.trace"],
        env={**os.environ, "LD_PRELOAD": str(stub), "PYTHONPATH": os.pathsep.join(paths)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert "+cu" in found["torch"] or torch.version.cuda, found["torch"]
    cases: dict[str, Any] = found["cases"]
    return cases


def test_the_host_never_waits_for_the_device(traced: dict[str, Any]) -> None:
    waits = {name: case["waits"] for name, case in traced.items() if case["waits"]}
    over = {n: w for n, w in waits.items() if sum(w.values()) > WAITS.get(n, 0)}
    assert not over


def test_a_micro_batch_is_sent_in_few_copies(traced: dict[str, Any]) -> None:
    copies = {name: case["copies"] - WAITS.get(name, 0) for name, case in traced.items()}
    assert max(copies.values()) <= COPIES, copies


def test_layers_start_few_operations(traced: dict[str, Any]) -> None:
    found = {n: traced[n]["operations_per_layer"]["total"] for n in OPERATIONS_PER_LAYER}
    assert {n: found[n] for n, most in OPERATIONS_PER_LAYER.items() if found[n] > most} == {}


def test_the_rest_starts_few_operations(traced: dict[str, Any]) -> None:
    found = {n: traced[n]["operations_outside_layers"]["total"] for n in OPERATIONS_OUTSIDE_LAYERS}
    assert {n: found[n] for n, most in OPERATIONS_OUTSIDE_LAYERS.items() if found[n] > most} == {}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_operations_do_not_depend_on_the_number_of_pairs(
    traced: dict[str, Any], method: str
) -> None:
    few, many = traced[method], traced[f"{method}, 16 pairs"]
    assert few == many


def test_chunks_of_the_head_add_nothing_to_the_layers(traced: dict[str, Any]) -> None:
    for method in ("full", "lora"):
        plain, chunked = traced[method], traced[f"{method}, head in chunks"]
        assert chunked["operations_per_layer"] == plain["operations_per_layer"]
        outside = "operations_outside_layers"
        assert chunked[outside]["total"] > plain[outside]["total"]  # there were several
