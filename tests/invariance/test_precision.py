"""In bf16 as well every engine trains the same, within what bf16 itself costs.

Bounds are about three times what ``benchmarks/precision.py`` measured over three orders of the
data (docs/distributed.md): there the engines lay no further from each other than from fp32.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launching import ENGINES, environment

BOUNDS = {"loss/orpo": 2e-3, "grad_norm": 2.5e-2}  # relative, of any of ten steps


def assert_close(engines: list[str], methods: list[str], seeds: list[int], out: Path) -> None:
    """The benchmark's own figures, held to the bounds."""
    words = ["--engines", *engines, "--methods", *methods, "--seeds", *map(str, seeds)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "precision.py"), *words, "--json", str(out)],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(found) == len(engines) * len(methods)
    for case, row in found.items():
        for metric, bound in BOUNDS.items():
            for other in ("fp32", "one process"):
                assert row[f"{metric} from {other}"]["worst"] < bound, (case, metric, other)
        assert row["loss/orpo from fp32"]["worst"] > 1e-6, f"{case}: it did not run in bf16"


def test_zero2_in_bf16(tmp_path: Path) -> None:
    """The engine that differs most: its weights are bf16 copies, its sums are DeepSpeed's."""
    assert_close(["zero2"], ["full"], [0], tmp_path / "out.json")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["single", *ENGINES])
def test_every_engine_in_bf16(engine: str, tmp_path: Path) -> None:
    assert_close([engine], ["full", "lora"], [0, 1], tmp_path / "out.json")
