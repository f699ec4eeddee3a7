"""Real files with real defects, through the real command line, where they are at hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.launching import run


def expected_skips(path: Path) -> dict[str, int]:
    """Counted without the loader: identical sides and empty last turns."""
    counts: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        sides = [row["chosen"], row["rejected"]]
        texts = [s if isinstance(s, str) else s[-1]["content"] for s in sides]
        if "prompt" not in row:
            texts = [text.rpartition("\n\nAssistant:")[2] for text in texts]
        for name, text in zip(("empty_chosen", "empty_rejected"), texts, strict=True):
            if not text.strip():
                counts[name] = counts.get(name, 0) + 1
                break
        else:
            if texts[0].strip() == texts[1].strip():
                counts["identical_answers"] = counts.get("identical_answers", 0) + 1
    return counts


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("hh_harmless_train", 2003),
        ("rasbt_polite_train", 929),
        ("lf_dpo_en_demo", 300),
        ("hh_harmless_raw_transcripts", 299),
    ],
)
def test_real_files_train_and_are_counted(
    shared: Path, tmp_path: Path, name: str, pairs: int
) -> None:
    path, model = shared / "data" / f"{name}.jsonl", shared / "models" / "stories260K-hf"
    command = [sys.executable, "-m", "orpo_dist", "train", "--model", str(model), "--data-path"]
    flags = ["--project-name", str(tmp_path / "run"), "--max-steps", "5", "--batch-size", "2"]
    said = run([*command, str(path), *flags])
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())["train"]
    assert written["skipped"]["train"] == expected_skips(path)
    assert report["pairs"] == pairs
    assert report["pairs"] + sum(written["skipped"]["train"].values()) == report["rows"]
    cut = report["truncated"]["prompt"]["count"]
    if cut > pairs / 4:  # the short default is said loudly
        assert f"{cut} of {pairs} prompts" in said
        assert "--max-prompt-length" in said
