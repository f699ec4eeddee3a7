"""The plan at scale: tokens and rank balance of a data set on 8 … 4096 ranks, without any model.

    python benchmarks/plan.py --tokenizer MODEL --data hh.jsonl ultrafeedback.jsonl --json out.json

For every file and number of ranks: how many tokens the packed layout computes and how many the
padded one would, the balance (mean / max cost over ranks) beside dealing by turns, micro-batches a
step, and how long a million pairs take to plan (the file's lengths, repeated).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from orpo_dist.batching.balance import deal_to_ranks, packing_cost
from orpo_dist.batching.steps import StepPlan

MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--tokenizer", required=True, help="a model whose tokenizer to use")
    parser.add_argument("--data", required=True, nargs="+", help="files of preferences")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512, 4096])
    parser.add_argument("--pairs-per-rank", type=int, default=8, help="pairs of a step on one rank")
    parser.add_argument("--token-budget", type=int, default=4096)
    parser.add_argument("--hidden-size", type=int, default=4096, help="width of the model")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    results = [
        {"data": Path(path).name, **at_scale(lengths, ranks, options)}
        for path in options.data
        for lengths in [lengths_of(path, options.tokenizer)]
        for ranks in options.ranks
    ]
    print(table(results, options))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def lengths_of(path: str, tokenizer: str) -> np.ndarray:
    from transformers import AutoTokenizer

    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.data import Columns, Encoder, Limits, prepare

    quieten_libraries()
    encoder = Encoder(AutoTokenizer.from_pretrained(tokenizer), limits=Limits(4096, 4096))
    return prepare([path], encoder, Columns(), "train", progress=False).lengths


def at_scale(lengths: np.ndarray, ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    many = np.resize(lengths, (MILLION, 3))
    plan = StepPlan(
        many,
        many[:, 1],
        global_batch=ranks * options.pairs_per_rank,
        micro_batch=options.pairs_per_rank,
        world_size=ranks,
        token_budget=options.token_budget,
        hidden_size=options.hidden_size,
    )
    start = time.perf_counter()
    steps = list(plan.epoch(0))
    seconds = time.perf_counter() - start
    costs = packing_cost(many, options.hidden_size)
    balances, by_turns = [], []
    for at in range(0, min(len(steps), 20)):
        pairs = plan.order(0)[at * plan.global_batch : (at + 1) * plan.global_batch]
        if len(pairs) < plan.global_batch:
            continue
        dealt = deal_to_ranks(costs[pairs], ranks, options.pairs_per_rank)
        balances.append(balance(costs[pairs], dealt))
        by_turns.append(balance(costs[pairs], [range(r, len(pairs), ranks) for r in range(ranks)]))
    works = [step.work for step in steps]
    return {
        "ranks": ranks,
        "pairs_per_step": plan.global_batch,
        "padded_over_packed": sum(w.padded for w in works) / sum(w.tokens for w in works),
        "balance": float(np.mean(balances)),
        "worst_balance": min(balances),
        "balance_by_turns": float(np.mean(by_turns)),
        "micro_batches": float(np.mean([len(step.micro_batches) for step in steps])),
        "seconds_per_million_pairs": seconds,
    }


def balance(costs: np.ndarray, dealt: Any) -> float:
    loads = np.asarray([costs[list(rank)].sum() for rank in dealt])
    return float(loads.mean() / loads.max())


def table(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    lines = [
        f"{options.pairs_per_rank} pairs a rank and step, at most {options.token_budget} tokens a "
        f"micro-batch, hidden size {options.hidden_size}",
        f"{'':<28}{'ranks':>6}{'padded':>8}{'balance':>9}{'worst':>8}{'by turns':>10}"
        f"{'micro':>7}{'s per 1M':>10}",
    ]
    lines += [
        f"{row['data'][:27]:<28}{row['ranks']:>6}{row['padded_over_packed']:>7.2f}x"
        f"{row['balance']:>9.1%}{row['worst_balance']:>8.1%}{row['balance_by_turns']:>10.1%}"
        f"{row['micro_batches']:>7.2f}{row['seconds_per_million_pairs']:>10.1f}"
        for row in results
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
