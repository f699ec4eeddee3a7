"""How long ``orpo-dist data audit`` takes, and how much of what was planted it finds.

    python benchmarks/audit.py --pairs 100000 [--tokenizer MODEL] [--json out.json]

Pairs of random words (by Zipf's law, as in language; about 300 words a pair, as in HH and
UltraFeedback taken together) with planted repeats, near-repeats, contradictions and leaks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("prompt", "chosen", "rejected")
MEAN_WORDS = (100, 100, 100)
SHARE = 0.01  # of the pairs, for each planted defect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--tokenizer", help="a model whose tokenizer to use; none: no token checks")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.pairs, options.tokenizer)
    print(json.dumps(result, indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, pairs: int, tokenizer: str | None = None) -> dict[str, Any]:
    """Seconds of the whole command, reading and writing included, and found / planted rows."""
    planted = write_planted(folder, pairs)
    command = [
        sys.executable, "-m", "orpo_dist", "data", "audit", str(folder / "train.jsonl"),
        "--valid-data-path", str(folder / "valid.jsonl"), "--json", str(folder / "audit.json"),
        "--html", str(folder / "audit.html"), "--clean", str(folder / "clean.jsonl"),
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command + ["--model", tokenizer] * (tokenizer is not None), check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    seconds = time.perf_counter() - start
    found = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["findings"]
    rows = {f["rule"]: {int(r["row"].rpartition(":")[2]) - 1 for r in f["rows"]} for f in found}
    return {
        "pairs": pairs,
        "megabytes": round((folder / "train.jsonl").stat().st_size / 1e6, 1),
        "tokenizer": tokenizer is not None,
        "seconds": round(seconds, 1),
        "rules": {
            rule: {
                "planted": len(where),
                "found": len(where & rows.get(rule, set())),
                "false": len(rows.get(rule, set()) - where),
            }
            for rule, where in planted.items()
        },
    }


def write_planted(folder: Path, pairs: int) -> dict[str, set[int]]:
    """Write train.jsonl and valid.jsonl; returns the row indices that each rule must flag."""
    generator = np.random.default_rng(0)
    lengths = generator.gamma(2.0, [n / 2 for n in MEAN_WORDS], (pairs, 3)).astype(int) + 5
    words = np.asarray([f"w{number:x}" for number in range(50_000)])
    drawn = words[(generator.zipf(1.3, lengths.sum()) * 7919) % len(words)]
    cuts = lengths.ravel().cumsum()[:-1]
    texts = [piece.tolist() for piece in np.split(drawn, cuts)]
    rows = [dict(zip(PARTS, texts[at : at + 3], strict=True)) for at in range(0, len(texts), 3)]
    planted: dict[str, set[int]] = {}
    n = max(1, int(pairs * SHARE))
    # each defect takes rows from the end and copies rows from the beginning
    sources = generator.permutation(pairs // 2)[: 5 * n].reshape(5, n).tolist()
    targets = (
        (pairs // 2 + generator.permutation(pairs - pairs // 2)[: 4 * n]).reshape(4, n).tolist()
    )
    for copy, source in zip(targets[0], sources[0], strict=True):
        rows[copy] = dict(rows[source])
    planted["duplicate"] = set(targets[0])
    for copy, source in zip(targets[1], sources[1], strict=True):
        if min(len(rows[source][part]) for part in PARTS) < 60:
            # long enough that one edited word leaves them similar
            rows[source] = {part: generator.choice(words, 60).tolist() for part in PARTS}
        rows[copy] = {part: _edited(rows[source][part], generator) for part in PARTS}
    planted["near_duplicate"] = set(targets[1])
    for copy, source in zip(targets[2], sources[2], strict=True):
        original = rows[source]
        rows[copy] = {
            "prompt": original["prompt"],
            "chosen": original["rejected"],
            "rejected": original["chosen"],
        }
    planted["contradictory"] = {*targets[2], *sources[2]}
    planted["leaked"] = set(targets[3])
    _write(folder / "valid.jsonl", [rows[row] for row in targets[3]])
    _write(folder / "train.jsonl", rows)
    return planted


def _edited(words: list[str], generator: np.random.Generator) -> list[str]:
    """One word in sixty replaced: similarity 0.9 or so in triples of words."""
    words = list(words)
    for place in generator.integers(0, len(words), max(1, len(words) // 60)):
        words[place] = "edited"
    return words


def _write(path: Path, rows: list[dict[str, list[str]]]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps({part: " ".join(words) for part, words in row.items()}) + "\n")


if __name__ == "__main__":
    main()
