"""MFU and peak memory of full bf16 training on one NVIDIA GPU, beside TRL and TRL with Liger.

    python benchmarks/gpu.py --json out.json

A Llama shape with random weights and random tokens, in pairs whose lengths are spread like those
of HH harmless: nothing to download. MFU counts useful tokens only, prompts once, against the
data sheet's dense bf16 peak. Contenders run in processes of their own and take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from step import lengths_of, our_share, trl_share

SHAPES = {
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", default="cuda", help="cpu, with --shape tiny, tries the script")
    parser.add_argument("--pairs", type=int, default=32, help="pairs per optimizer step")
    parser.add_argument("--batches", type=int, default=4, help="timed optimizer steps")
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["packed:32:16384", "trl:8", "trl:2", "liger:8"],
        metavar="NAME:PAIRS[:TOKENS]",
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes per contender")
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
    result = {name: middle(found) for name, found in runs.items()}
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
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def some_pairs(count: int, vocabulary: int) -> list[Any]:
    """Random tokens; prompts and answers about as long as those of HH harmless."""
    from orpo_dist.types import Pair

    draw = np.random.default_rng(0)
    lengths = draw.lognormal(np.log([110, 28, 36]), [0.8, 0.9, 0.9], (count, 3))
    return [
        Pair(*(draw.integers(3, vocabulary, int(n)).tolist() for n in np.clip(row, 2, 512)))
        for row in lengths
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from orpo_dist.batching import Plan
    from orpo_dist.console import quieten_libraries
    from orpo_dist.throughput import model_flops, peak_flops

    quieten_libraries()
    device, shape = torch.device(options.device), SHAPES[options.shape]
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).bfloat16()
    flops = model_flops(model)
    assert flops is not None
    pairs = some_pairs(options.pairs * options.batches, shape["vocab_size"])
    batches = [pairs[i : i + options.pairs] for i in range(0, len(pairs), options.pairs)]
    name, micro, *budget = options.child.split(":")
    if name in ("trl", "liger"):
        share = trl_share(model, tokenizer(shape["vocab_size"]), name == "liger")

        def cut(pairs: list[Any]) -> list[list[Any]]:
            return [pairs[i : i + int(micro)] for i in range(0, len(pairs), int(micro))]
    else:
        share, cut = our_share(name, model, int(micro), int(*budget) if budget else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    seconds, losses = [], []
    for pairs in [*batches[:2], *batches]:  # the first two warm up
        wait(device)
        start, loss = time.perf_counter(), torch.zeros((), device=device)
        for group in cut(pairs):
            part = share(group, pairs)
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        wait(device)
        seconds.append(time.perf_counter() - start)
    spent = statistics.fmean(seconds[2:])
    lengths = np.asarray([lengths_of(pairs) for pairs in batches]).reshape(-1, 3)
    nll = lengths[:, 0] + lengths[:, 1] - 1
    works = [s.work for s in Plan(lengths, nll, options.pairs, options.pairs).in_order()]
    rate = sum(flops(work) for work in works) / len(works) / spent
    peak = peak_flops(device, bf16=True)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "seconds": spent,
        "pairs_per_second": options.pairs / spent,
        "useful_tokens_per_second": float(lengths.sum()) / len(batches) / spent,
        "mfu": rate / peak if peak else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        "loss": statistics.fmean(losses[2:]),
    }


def wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def tokenizer(vocabulary: int) -> Any:
    """What TRL's trainer asks for; the token ids are ours."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(3, vocabulary)} | {"<pad>": 0, "<s>": 1, "</s>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<pad>",
    )


def middle(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repeats, or why there are none."""
    if failed := next((run["failed"] for run in found if "failed" in run), None):
        return {"failed": failed}
    return {
        key: statistics.median(run[key] for run in found) if isinstance(value, float) else value
        for key, value in found[0].items()
    }


def table(result: dict[str, dict[str, Any]]) -> str:
    base = next((row for row in result.values() if "seconds" in row), {"seconds": 1.0})
    lines = [
        f"{'':<18}{'pairs/s':>9}{'tokens/s':>10}{'MFU':>7}{'peak GB':>9}{'loss':>9}{'time':>8}"
    ]
    for name, row in result.items():
        if "failed" in row:
            lines.append(f"{name:<18}  {row['failed']}")
            continue
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        memory = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
        lines.append(
            f"{name:<18}{row['pairs_per_second']:>9.1f}{row['useful_tokens_per_second']:>10.0f}"
            f"{mfu:>7}{memory:>9}{row['loss']:>9.4f}{row['seconds'] / base['seconds']:>7.2f}x"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
