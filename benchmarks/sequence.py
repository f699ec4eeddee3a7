"""One sequence on several processes beside the same sequence on one: seconds and bytes of a step.

    python benchmarks/sequence.py --json out.json

A random Llama of width 512 with four layers, fp32, pairs of a long prompt and two short
answers; every process has one thread. Forward, loss and backward, whole and shared by turns; bytes
are the most that tensors took beside weights and their gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ANSWERS = 256  # tokens in each of the two
WORDS = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--worker", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(options.repeats):
            for processes in options.processes:
                found += launch(options, processes, Path(scratch) / f"{turn}-{processes}.json")
    rows = summary(found)
    for row in rows:
        print(
            f"{row['tokens']:>7} tokens on {row['processes']}: {row['seconds']:7.2f} s, "
            f"{row['bytes'] / 1e6:7.0f} MB, loss {row['loss']:.6f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def launch(options: Any, processes: int, out: Path) -> list[dict[str, Any]]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [*launcher, "--nproc-per-node", str(processes), __file__, "--worker", str(out)]
    words += ["--width", str(options.width), "--tokens", *map(str, options.tokens)]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(out.read_text(encoding="utf-8"))


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians of seconds; bytes and losses, which are the same each time."""
    keys = sorted({(row["tokens"], row["processes"]) for row in found})
    rows = []
    for tokens, processes in keys:
        same = [r for r in found if (r["tokens"], r["processes"]) == (tokens, processes)]
        rows.append({**same[0], "seconds": statistics.median(r["seconds"] for r in same)})
    return rows


def work(options: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from orpo_dist.engines import runtime
    from orpo_dist.engines.mesh import mesh_of
    from orpo_dist.scoring.ranks import spread
    from orpo_dist.scoring.scorer import make_scorer

    here = runtime.start()
    torch.manual_seed(0)
    heads = options.width // 64
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=options.width, intermediate_size=options.width * 8 // 3,
        num_hidden_layers=4, num_attention_heads=heads, num_key_value_heads=heads // 3,
        max_position_embeddings=max(options.tokens),
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    scorer = make_scorer(model, "packed")
    scorer = spread(scorer, model, mesh_of(here, here.world_size).sequence, here)
    rows = [one_step(model, scorer, tokens, here) for tokens in options.tokens]
    if here.is_main:
        Path(options.worker).write_text(json.dumps(rows), encoding="utf-8")
    runtime.leave()


def one_step(model: Any, scorer: Any, tokens: int, here: Any) -> dict[str, Any]:
    """Seconds of a step, the slowest rank's, and in another one the bytes, the largest rank's."""
    import torch

    from orpo_dist import orpo_loss
    from orpo_dist.base.types import Pair
    from orpo_dist.planning.trace import LiveBytes
    from orpo_dist.upstream.torch import watching

    draw = torch.Generator().manual_seed(0)
    sizes = (tokens - 2 * ANSWERS, ANSWERS, ANSWERS)
    pair = Pair(*(torch.randint(0, WORDS, (n,), generator=draw).tolist() for n in sizes))

    def step() -> float:
        scores = scorer.score(model, scorer.collate([pair]))
        loss, _ = orpo_loss(scores, 1.0, "additive", 1, ANSWERS)
        loss.backward()
        return float(loss)

    step()  # warms up, and makes the gradients
    here.wait()
    begin = time.perf_counter()
    loss = step()
    seconds = time.perf_counter() - begin
    known = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    live = LiveBytes([tensor for tensor in known if tensor is not None])
    with watching(live.count):
        step()
    return {
        "processes": here.world_size,
        "tokens": tokens,
        "seconds": max(here.gather(seconds)),
        "bytes": max(here.gather(live.peak)),
        "loss": sum(here.gather(loss)),
    }


if __name__ == "__main__":
    main()
