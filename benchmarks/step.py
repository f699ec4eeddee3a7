"""Time optimizer steps of orpo_dist beside TRL's ORPOTrainer, on the same pairs and machine.

    python benchmarks/step.py --model MODEL --data pairs.jsonl --json out.json

Batches are drawn at random from the data. Every measurement is a process of its own, so that peak
memory is its own; contenders take turns, and medians are reported. TRL gets the very same token
ids, and its loss is checked against ours (with TRL's scope of L_SFT). A contender that dies, for
lack of memory say, is reported as such. The limit is the arithmetic of the useful tokens at the
rate at which this machine multiplies matrices of the model's shapes.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

ALPHA = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="a file of preferences")
    parser.add_argument("--pairs", type=int, default=8, help="pairs per optimizer step")
    parser.add_argument("--batches", type=int, default=2, help="timed optimizer steps")
    parser.add_argument("--max-prompt-length", type=int, default=512)
    parser.add_argument("--max-completion-length", type=int, default=512)
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["packed:8:512", "packed:8", "trl:8", "trl:2", "trl:1"],
        metavar="NAME:PAIRS[:TOKENS]",
        help="packed, padded, trl or liger, with its micro-batch and token budget",
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes per contender")
    parser.add_argument(
        "--precision",
        choices=("none", "bf16"),
        default="none",
        help="bf16: fp32 weights under autocast, as mixed_precision bf16 has it",
    )
    parser.add_argument("--seed", type=int, default=0, help="which pairs")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(limit(options) if options.child == "limit" else measure(options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("limit", *options.contenders)}
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
        killed = done.returncode < 0
        return {"failed": "out of memory" if killed else done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def load(options: argparse.Namespace) -> tuple[Any, Any, list[list[Any]]]:
    """Model, tokenizer and the batches of pairs."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.data import Columns, Encoder, Limits, prepare

    quieten_libraries()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    limits = Limits(options.max_prompt_length, options.max_completion_length)
    data = prepare([options.data], Encoder(tokenizer, limits=limits), Columns(), "train")
    drawn = np.random.default_rng(options.seed).permutation(len(data))
    size = options.pairs
    batches = [
        [data[int(i)] for i in drawn[n * size : (n + 1) * size]] for n in range(options.batches)
    ]
    return model, tokenizer, batches


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step, loss and peak memory of one contender, in this process."""
    import torch

    model, tokenizer, batches = load(options)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")
    name, micro, *budget = options.child.split(":")
    if name in ("trl", "liger"):
        share = trl_share(model, tokenizer, name == "liger")

        def cut(pairs: list[Any]) -> list[list[Any]]:
            return [pairs[i : i + int(micro)] for i in range(0, len(pairs), int(micro))]
    else:
        share, cut = our_share(name, model, int(micro), int(*budget) if budget else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)  # equal losses throughout

    def step(pairs: list[Any], groups: list[list[Any]]) -> float:
        loss = 0.0
        for group in groups:
            with mixed:
                part = share(group, pairs)
            part.backward()
            loss += part.item()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step(batches[0][:1], [batches[0][:1]])  # warm up
    seconds, losses = [], []
    for pairs in batches:
        start = time.perf_counter()
        losses.append(step(pairs, cut(pairs)))
        seconds.append(time.perf_counter() - start)
    found = {
        "seconds": statistics.fmean(seconds),
        "losses": losses,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if name in ("packed", "padded"):
        found |= forwards(
            lambda: [share(group, pairs) for pairs in batches for group in cut(pairs)], mixed
        )
    return found


def forwards(run: Callable[[], Any], mixed: Any) -> dict[str, float]:
    """Seconds of the forward passes, as in training and as in evaluation."""
    import torch

    found = {}
    for name in ("training_forward", "evaluation"):
        with torch.set_grad_enabled(name == "training_forward"), mixed:
            start = time.perf_counter()
            run()
            found[name] = time.perf_counter() - start
    return found


def our_share(path: str, model: Any, micro_batch: int, budget: int | None) -> tuple[Any, Any]:
    import numpy as np

    from orpo_dist.batching.steps import StepPlan
    from orpo_dist.engines.allocator import keep_freed_memory
    from orpo_dist.scoring.objective import orpo_loss
    from orpo_dist.scoring.scorer import make_scorer

    keep_freed_memory()  # as the trainer does
    scorer = make_scorer(model, path, "prompt_and_completion")

    def share(group: list[Any], pairs: list[Any]) -> Any:
        tokens = sum(len(pair.prompt) + len(pair.chosen) - 1 for pair in pairs)
        scores = scorer.score(model, scorer.collate(group).to(model.device))
        return orpo_loss(scores, ALPHA, "additive", len(pairs), tokens)[0]

    def cut(pairs: list[Any]) -> list[list[Any]]:
        plan = StepPlan(
            np.asarray(lengths_of(pairs)),
            np.ones(len(pairs)),
            global_batch=len(pairs),
            micro_batch=micro_batch,
            token_budget=budget,
            padded=path == "padded",
        )
        (step,) = plan.in_order()
        return [[pairs[index] for index in micro] for micro in step.micro_batches]

    return share, cut


def trl_share(model: Any, tokenizer: Any, liger: bool) -> Any:
    """TRL's own collator and loss, fed with our token ids; Liger's kernels under them if asked."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    if liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model)
    args = ORPOConfig(
        output_dir=tempfile.mkdtemp(),
        beta=ALPHA,
        bf16=False,
        use_cpu=model.device.type == "cpu",
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

    def share(group: list[Any], pairs: list[Any]) -> Any:
        batch = trainer.data_collator([features(pair) for pair in group])
        batch = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in batch.items()}
        return trainer.compute_loss(model, batch) * (len(group) / len(pairs))

    return share


def lengths_of(pairs: list[Any]) -> list[tuple[int, int, int]]:
    return [(len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs]


def limit(options: argparse.Namespace) -> dict[str, Any]:
    """Useful arithmetic of a step, and the rate at which this machine can do it."""
    import numpy as np
    import torch

    from orpo_dist.batching.steps import StepPlan, nll_token_counts
    from orpo_dist.engines.allocator import keep_freed_memory
    from orpo_dist.models.flops import model_flops

    keep_freed_memory()  # or the rate is that of mapping memory
    model, _, batches = load(options)
    flops = model_flops(model)
    assert flops is not None
    works = []
    for pairs in batches:
        lengths = np.asarray(lengths_of(pairs))
        nll = nll_token_counts(lengths, "prompt_and_completion")
        works += [step.work for step in StepPlan(lengths, nll, len(pairs), len(pairs)).in_order()]
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    rows, rates = 1024, []
    for weight in {tuple(p.shape): p for p in model.parameters() if p.dim() == 2}.values():
        inputs, spent = torch.randn(rows, weight.shape[1]).to(dtype), []
        weight = weight.detach().to(dtype)  # noqa: PLW2901
        for _ in range(12):
            start = time.perf_counter()
            torch.nn.functional.linear(inputs, weight)
            spent.append(time.perf_counter() - start)
        rates.append((2 * rows * weight.numel() / statistics.median(spent), weight.numel()))
    return {
        "useful_tokens": sum(work.tokens for work in works) / len(batches),
        "padded_tokens": sum(work.padded for work in works) / len(batches),
        "flops": sum(flops(work) for work in works) / len(batches),
        "flops_per_second": sum(n for _, n in rates) / sum(n / rate for rate, n in rates),
    }


def summarise(runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    limits = runs.pop("limit")
    rate = statistics.median(found["flops_per_second"] for found in limits)
    least = limits[0]["flops"] / rate
    rows = {}
    for name, found in runs.items():
        if failed := next((run["failed"] for run in found if "failed" in run), None):
            rows[name] = {"failed": failed}
            continue
        seconds = statistics.median(run["seconds"] for run in found)
        rows[name] = {
            **{
                key: statistics.median(run[key] for run in found)
                for key in found[0]
                if key != "losses"
            },
            "all_seconds": [run["seconds"] for run in found],
            "pairs_per_second": options.pairs / seconds,
            "useful_tokens_per_second": limits[0]["useful_tokens"] / seconds,
            "of_limit": least / seconds,
            "losses": found[0]["losses"],
        }
    # TRL averages within a micro-batch, so its loss is ours only where that is the whole step.
    whole = [
        row["losses"]
        for name, row in rows.items()
        if "losses" in row and (name.startswith("pa") or name.split(":")[1] == str(options.pairs))
    ]
    for losses in whole:
        apart = max(abs(a - b) for a, b in zip(losses, whole[0], strict=True))
        assert apart < (1e-3 if options.precision == "none" else 3e-2), (
            f"losses on the same batch differ by {apart}"
        )
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU, "
        + {"none": "fp32", "bf16": "bf16 under autocast"}[options.precision],
        "data": Path(options.data).name,
        "pairs": options.pairs,
        "batches": options.batches,
        "repeats": options.repeats,
        "useful_tokens": limits[0]["useful_tokens"],
        "padded_tokens": limits[0]["padded_tokens"],
        "matmul_gflops": rate / 1e9,
        "limit_seconds": least,
        "contenders": rows,
    }


def table(result: dict[str, Any]) -> str:
    rows = result["contenders"]
    base = next((row for row in rows.values() if "seconds" in row), None)
    lines = [
        f"{result['data']}, {result['pairs']} pairs a step ({result['useful_tokens']:.0f} tokens, "
        f"{result['padded_tokens']:.0f} padded), {result['machine']}",
        f"{'':<15}{'s/step':>8}{'pairs/s':>9}{'tokens/s':>10}{'of limit':>10}{'peak GB':>9}"
        f"{'loss':>10}{'time':>8}{'memory':>8}",
        f"{'limit':<15}{result['limit_seconds']:>8.2f}  at {result['matmul_gflops']:.0f} GFLOP/s",
    ]
    for name, row in rows.items():
        if "failed" in row or base is None:
            lines.append(f"{name:<15}  {row.get('failed')}")
            continue
        lines.append(
            f"{name:<15}{row['seconds']:>8.2f}{row['pairs_per_second']:>9.2f}"
            f"{row['useful_tokens_per_second']:>10.0f}{row['of_limit']:>10.0%}"
            f"{row['peak_gb']:>9.2f}{statistics.fmean(row['losses']):>10.4f}"
            f"{row['seconds'] / base['seconds']:>7.2f}x{row['peak_gb'] / base['peak_gb']:>7.2f}x"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
