"""Pairs a second of evaluation, beside TRL's evaluation loop, on the same pairs and machine.

    python benchmarks/evaluate.py --model MODEL --data pairs.jsonl --json out.json

Pairs are drawn at random from the data. Every measurement is a process of its own; contenders take
turns, and medians are reported. TRL gets the very same token ids through its own collator and
``ORPOTrainer.evaluate``, and its mean log-probs are checked against ours. Loading is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="a file of preferences")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--max-prompt-length", type=int, default=512)
    parser.add_argument("--max-completion-length", type=int, default=512)
    parser.add_argument(
        "--contenders", nargs="+", default=["packed:4", "packed:8", "trl:8", "trl:4", "trl:1"],
        metavar="NAME:PAIRS", help="packed, padded or trl, with its batch size",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="processes per contender")
    parser.add_argument("--seed", type=int, default=0, help="which pairs")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contenders}
    for repeat in range(options.repeats):
        for name, found in runs.items():
            print(f"run {repeat + 1}/{options.repeats}: {name}", file=sys.stderr, flush=True)
            found.append(in_child(name))
    result = summarise(runs, options)
    print(table(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def in_child(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--child", name],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, accuracy, mean log-probs and peak memory of one contender, in this process."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.data import Columns, Encoder, Limits, PairDataset, prepare

    quieten_libraries()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    if torch.cuda.is_available():
        model = model.cuda()
    limits = Limits(options.max_prompt_length, options.max_completion_length)
    data = prepare([options.data], Encoder(tokenizer, limits=limits), Columns(), "train")
    drawn = np.random.default_rng(options.seed).permutation(len(data))[: options.pairs]
    pairs = [data[int(index)] for index in drawn]
    tokens = np.concatenate([[*p.prompt, *p.chosen, *p.rejected] for p in pairs]).astype(np.int32)
    subset = PairDataset(
        tokens, data.lengths[drawn], data.category_ids[drawn], data.source_ids[drawn], None,
        data.report,
    )  # fmt: skip
    name, _, size = options.child.partition(":")
    run = trl_run if name == "trl" else our_run
    found = run(model, tokenizer, subset, name, int(size))
    return {**found, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def our_run(model: Any, tokenizer: Any, pairs: Any, path: str, size: int) -> dict[str, Any]:
    from orpo_dist.evaluation import score_dataset
    from orpo_dist.scoring.scorer import make_scorer

    make_scorer(model, path)  # warm up
    start = time.perf_counter()
    scores = score_dataset(model, pairs, size, progress=False, attention=path)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "accuracy": float(scores.correct.mean()),
        "chosen": float(scores.chosen_logp.mean()),
        "rejected": float(scores.rejected_logp.mean()),
    }


def trl_run(model: Any, tokenizer: Any, pairs: Any, _: str, size: int) -> dict[str, Any]:
    """TRL's ``ORPOTrainer.evaluate`` on our token ids."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    args = ORPOConfig(
        output_dir=tempfile.mkdtemp(),
        beta=0.5,
        bf16=False,
        use_cpu=model.device.type == "cpu",
        per_device_eval_batch_size=size,
        report_to=[],
        disable_tqdm=True,
    )
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    trainer = ORPOTrainer(
        model=model, args=args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer
    )
    dataset = Dataset.from_list([features(pairs[index]) for index in range(len(pairs))])
    trainer.evaluate(dataset.select([0]))  # warm up
    start = time.perf_counter()
    found = trainer.evaluate(dataset)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "accuracy": found["eval_rewards/accuracies"],
        "chosen": found["eval_logps/chosen"],
        "rejected": found["eval_logps/rejected"],
    }


def features(pair: Any) -> dict[str, list[int]]:
    found = {"prompt_input_ids": pair.prompt, "prompt_attention_mask": [1] * len(pair.prompt)}
    for side in ("chosen", "rejected"):
        answer = getattr(pair, side)
        found[f"{side}_input_ids"] = pair.prompt + answer
        found[f"{side}_attention_mask"] = [1] * (len(pair.prompt) + len(answer))
        found[f"{side}_labels"] = [-100] * len(pair.prompt) + answer
    return found


def summarise(runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    rows = {}
    for name, found in runs.items():
        seconds = statistics.median(run["seconds"] for run in found)
        rows[name] = {
            **found[0],
            "seconds": seconds,
            "all_seconds": [run["seconds"] for run in found],
            "pairs_per_second": options.pairs / seconds,
        }
    first = next(iter(rows.values()))
    for name, row in rows.items():
        if options.pairs % int(name.partition(":")[2]):
            continue  # TRL averages over batches, of which the last is then smaller
        for key in ("chosen", "rejected"):
            apart = abs(row[key] - first[key])
            assert apart < 1e-3, f"{name}: mean log-prob of {key} differs by {apart}"
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, fp32",
        "data": Path(options.data).name,
        "pairs": options.pairs,
        "repeats": options.repeats,
        "contenders": rows,
    }


def table(result: dict[str, Any]) -> str:
    rows = result["contenders"]
    base = next(iter(rows.values()))
    lines = [
        f"{result['data']}, {result['pairs']} pairs, {result['machine']}",
        f"{'':<12}{'seconds':>9}{'pairs/s':>9}{'peak GB':>9}{'accuracy':>10}{'slower':>9}",
    ]
    lines += [
        f"{name:<12}{row['seconds']:>9.2f}{row['pairs_per_second']:>9.2f}{row['peak_gb']:>9.2f}"
        f"{row['accuracy']:>10.3f}{row['seconds'] / base['seconds']:>8.2f}x"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
