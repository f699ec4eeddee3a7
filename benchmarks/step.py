"""Time one optimizer step of orpo_dist beside TRL's ORPOTrainer, on the same pairs and machine.

    python benchmarks/step.py --model MODEL --data pairs.jsonl --json out.json

Every measurement is a process of its own, so that peak memory is its own; contenders take turns,
and medians are reported. TRL gets the very same token ids, and its loss is checked against ours
(with TRL's scope of L_SFT). A contender that dies, for lack of memory say, is reported as such.
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

ALPHA = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="a file of preferences")
    parser.add_argument("--pairs", type=int, default=8, help="pairs per optimizer step")
    parser.add_argument("--max-prompt-length", type=int, default=512)
    parser.add_argument("--max-completion-length", type=int, default=512)
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["packed:8", "trl:8", "trl:2", "trl:1"],
        metavar="NAME:MICRO_BATCH",
        help="packed, padded or trl, with its micro-batch",
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes per contender")
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one to warm up")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contenders}
    for repeat in range(options.repeats):
        for name in options.contenders:
            print(f"run {repeat + 1}/{options.repeats}: {name}", file=sys.stderr, flush=True)
            runs[name].append(in_child(name))
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
        killed = done.returncode < 0
        return {"failed": "out of memory" if killed else done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, loss and peak memory of one contender, in this process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orpo_dist.console import quieten_libraries
    from orpo_dist.data import Columns, Encoder, Limits, prepare

    quieten_libraries()
    name, _, micro = options.child.partition(":")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    limits = Limits(options.max_prompt_length, options.max_completion_length)
    data = prepare([options.data], Encoder(tokenizer, limits=limits), Columns(), "train")
    pairs = [data[index] for index in range(options.pairs)]
    groups = [pairs[i : i + int(micro)] for i in range(0, len(pairs), int(micro))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # equal losses at every step
    share = (trl_share if name == "trl" else our_share)(name, model, tokenizer, pairs)
    seconds = []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        loss = 0.0
        for group in groups:
            part = share(group)
            part.backward()
            loss += part.item()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    lengths = [(len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs]
    return {
        "seconds": statistics.median(seconds[1:]),
        "loss": loss,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "useful_tokens": sum(map(sum, lengths)),
    }


def our_share(path: str, model: Any, tokenizer: Any, pairs: list[Any]) -> Any:
    from orpo_dist.objective import orpo_loss
    from orpo_dist.scoring import make_scorer

    scorer = make_scorer(model, path, "prompt_and_completion")
    tokens = sum(len(pair.prompt) + len(pair.chosen) - 1 for pair in pairs)

    def share(group: list[Any]) -> Any:
        scores = scorer.score(model, scorer.collate(group))
        return orpo_loss(scores, ALPHA, "additive", len(pairs), tokens)[0]

    return share


def trl_share(_: str, model: Any, tokenizer: Any, pairs: list[Any]) -> Any:
    """TRL's own collator and loss, fed with our token ids."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    args = ORPOConfig(
        output_dir=tempfile.mkdtemp(),
        beta=ALPHA,
        bf16=False,
        use_cpu=True,
        report_to=[],
        gradient_checkpointing=False,
    )
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    trainer = ORPOTrainer(
        model=model, args=args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer
    )

    def features(pair: Any) -> dict[str, list[int]]:
        found = {"prompt_input_ids": pair.prompt, "prompt_attention_mask": [1] * len(pair.prompt)}
        for side in ("chosen", "rejected"):
            answer = getattr(pair, side)
            found[f"{side}_input_ids"] = pair.prompt + answer
            found[f"{side}_attention_mask"] = [1] * (len(pair.prompt) + len(answer))
            found[f"{side}_labels"] = [-100] * len(pair.prompt) + answer
        return found

    def share(group: list[Any]) -> Any:
        batch = trainer.data_collator([features(pair) for pair in group])
        return trainer.compute_loss(model, batch) * (len(group) / len(pairs))

    return share


def summarise(runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    rows = {}
    for name, found in runs.items():
        failed = next((run["failed"] for run in found if "failed" in run), None)
        if failed:
            rows[name] = {"failed": failed}
            continue
        seconds = statistics.median(run["seconds"] for run in found)
        rows[name] = {
            "seconds": seconds,
            "pairs_per_second": options.pairs / seconds,
            "useful_tokens_per_second": found[0]["useful_tokens"] / seconds,
            "peak_gb": statistics.median(run["peak_gb"] for run in found),
            "loss": found[0]["loss"],
        }
    at_once = [row for name, row in rows.items() if name.partition(":")[2] == str(options.pairs)]
    losses = [row["loss"] for row in at_once if "loss" in row]
    apart = max(losses, default=0) - min(losses, default=0)
    assert apart < 1e-3, f"losses on the same batch differ by {apart}"
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU, fp32",
        "data": Path(options.data).name,
        "pairs": options.pairs,
        "repeats": options.repeats,
        "contenders": rows,
    }


def table(result: dict[str, Any]) -> str:
    rows = result["contenders"]
    base = next((row for row in rows.values() if "seconds" in row), None)
    lines = [
        f"{result['data']}, {result['pairs']} pairs a step, {result['machine']}",
        f"{'':<12}{'s/step':>8}{'pairs/s':>9}{'tokens/s':>10}{'peak GB':>9}{'loss':>10}"
        f"{'time':>8}{'memory':>8}",
    ]
    for name, row in rows.items():
        if "failed" in row or base is None:
            lines.append(f"{name:<12}  {row.get('failed')}")
            continue
        lines.append(
            f"{name:<12}{row['seconds']:>8.2f}{row['pairs_per_second']:>9.2f}"
            f"{row['useful_tokens_per_second']:>10.0f}{row['peak_gb']:>9.2f}{row['loss']:>10.4f}"
            f"{row['seconds'] / base['seconds']:>7.2f}x{row['peak_gb'] / base['peak_gb']:>7.2f}x"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
