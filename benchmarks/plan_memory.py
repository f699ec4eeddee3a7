"""What `orpo-dist plan` says a training will need, beside what it does need.

    python benchmarks/plan_memory.py --json out.json
    python benchmarks/plan_memory.py --engines ddp zero2 zero3 fsdp2 --cases 0 3
    python benchmarks/plan_memory.py --measure resident

Random weights and random tokens: nothing to download. Every case runs in processes of its own (two
but for `single`): the real trainer, two optimizer steps. Measured is the most memory that rank 0
had allocated for tensors: on a CPU added up from the profiler's record of the allocator, on a GPU
``torch.cuda.max_memory_allocated``. `--measure resident` takes the peak of the resident set
instead, which also holds the libraries and what lies unused between tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orpo_dist.base.console import set_up_logging

SHAPES = {
    "25m": (384, 1024, 8, 6, 32_000),
    "60m": (512, 1536, 12, 8, 32_000),
    "135m": (576, 1536, 30, 9, 49_152),
}
CASES = [
    # shape, pairs in a micro-batch, micro-batches, tokens of prompt, chosen, rejected, settings
    ("25m", 4, 2, (128, 128, 128), {}),
    ("25m", 4, 1, (256, 256, 256), {}),
    ("25m", 4, 2, (256, 256, 256), {"gradient_checkpointing": True}),
    ("60m", 1, 2, (64, 64, 64), {}),
    ("60m", 4, 2, (128, 128, 128), {"peft": True}),
    ("60m", 4, 2, (128, 128, 128), {"peft": True, "gradient_checkpointing": True}),
    ("60m", 2, 2, (256, 64, 64), {"attention": "padded"}),
    ("135m", 1, 2, (128, 128, 128), {}),
    ("135m", 2, 2, (128, 128, 128), {"peft": True}),
    ("25m", 4, 2, (128, 128, 128), {"mixed_precision": "bf16"}),
    ("25m", 4, 1, (128, 128, 128), {"mixed_precision": "bf16"}),
]
ENGINES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", nargs="+", default=["single"], choices=ENGINES)
    parser.add_argument("--cases", nargs="+", type=int, help="numbers of cases, from 0")
    parser.add_argument("--measure", default="allocated", choices=("allocated", "resident"))
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    set_up_logging()
    rows = []
    print(f"{'case':<60}{'planned':>10}{'measured':>10}{'off by':>9}  MiB")
    for engine in options.engines:
        for number in options.cases or range(len(CASES)):
            row = compare(engine, CASES[number], options.measure)
            rows.append(row)
            print(
                f"{row['case']:<60}{row['planned']:>10.0f}{row['measured']:>10.0f}"
                f"{row['planned'] / row['measured'] - 1:>+9.1%}",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def model_config(shape: str) -> Any:
    from transformers import LlamaConfig

    hidden, wide, layers, heads, vocabulary = SHAPES[shape]
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 3 or 1 if heads % 3 == 0 else heads,
        vocab_size=vocabulary, tie_word_embeddings=True,
    )  # fmt: skip


def compare(engine: str, case: tuple[Any, ...], measure: str) -> dict[str, Any]:
    shape, pairs, micro_batches, lengths, settings = case
    words = " ".join(f"{k}={v}" for k, v in settings.items()) or "full"
    name = f"{engine} {shape} {pairs}×{'+'.join(map(str, lengths))} ×{micro_batches} {words}"
    return {"case": name, "measure": measure, "planned": planned(engine, case, measure),
            "measured": measured(engine, case, measure)}  # fmt: skip


def planned(engine: str, case: tuple[Any, ...], measure: str) -> float:
    """MiB; without what no tensor holds, unless the resident set is measured."""
    import torch

    from orpo_dist.config import ORPOConfig
    from orpo_dist.launch import presets
    from orpo_dist.planning.estimate import Estimator, Machine

    shape, pairs, micro_batches, lengths, settings = case
    config = ORPOConfig(batch_size=pairs, gradient_accumulation=micro_batches, **settings)
    gpu = torch.cuda.is_available()
    machine = Machine(1 if engine == "single" else 2, 1000.0, gpu=gpu)
    estimator = Estimator(model_config(shape), config, machine, lengths)
    found = estimator.parts(
        presets.find(engine).engine, pairs, micro_batches > 1, config.gradient_checkpointing
    )
    left_out = ("libraries", "fragmentation") if measure == "allocated" else ()
    return sum(part.bytes for part in found if part.name not in left_out) / 2**20


def measured(engine: str, case: tuple[Any, ...], measure: str) -> float:
    from orpo_dist.launch import presets
    from orpo_dist.launch.argv import Topology, plan_launch

    with tempfile.TemporaryDirectory() as scratch:
        if engine == "single":
            argv, environment = [sys.executable], {}
        else:
            plan = plan_launch(presets.find(engine), Topology(), 2, [])
            argv, environment = plan.argv[: plan.argv.index("-m", 3)], plan.environment
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        worker = [__file__, scratch, json.dumps(case), measure]
        environment["PLAN_MEMORY"] = "worker"
        done = subprocess.run(
            [*argv, *worker], check=False, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        return json.loads((Path(scratch) / "peak.json").read_text(encoding="utf-8"))


def work(scratch: Path, case: tuple[Any, ...], measure: str) -> None:
    """One process of a training: two steps of random tokens."""
    import numpy as np
    import torch
    from transformers import LlamaForCausalLM

    from orpo_dist import ORPOConfig, ORPOTrainer
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.data import PairDataset
    from orpo_dist.engines import runtime

    set_up_logging()
    quieten_libraries()
    shape, pairs, micro_batches, lengths, settings = case
    here = runtime.start()
    count = 2 * pairs * micro_batches * here.world_size
    tokens = np.random.default_rng(0).integers(3, 1000, count * sum(lengths), dtype=np.int32)
    dataset = PairDataset(
        tokens,
        np.tile(np.asarray(lengths, dtype=np.int32), (count, 1)),
        np.zeros(count, dtype=np.int32),
        np.zeros(count, dtype=np.int32),
        None,
        {"category_names": [""]},
    )
    config = ORPOConfig(
        project_name=str(scratch / "run"), max_steps=2, batch_size=pairs, log="none",
        gradient_accumulation=micro_batches, save_strategy="no", **settings,
        max_tokens_per_microbatch=None,
    )  # fmt: skip
    with peak(measure, scratch / f"trace-{here.rank}.json") as found:
        torch.manual_seed(0)
        model = LlamaForCausalLM(model_config(shape))
        trainer = ORPOTrainer(model, config, dataset, processing_class=tokenizer())
        trainer.train()
    if here.is_main:
        (scratch / "peak.json").write_text(json.dumps(found[0] / 2**20))
    runtime.leave()


@contextlib.contextmanager
def peak(measure: str, trace: Path) -> Iterator[list[float]]:
    """A list that afterwards holds the peak in bytes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    found: list[float] = []
    if measure == "resident":
        yield found
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    elif torch.cuda.is_available():
        yield found
        found.append(torch.cuda.max_memory_allocated())
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            yield found
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        changes = [e for e in events if e.get("name") == "[memory]"]
        changes.sort(key=lambda event: event["ts"])
        found.append(max(itertools.accumulate(e["args"]["Bytes"] for e in changes)))


def tokenizer() -> Any:
    """Trainer asks for one; the tokens are random."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


if __name__ == "__main__":
    if os.environ.get("PLAN_MEMORY") == "worker":
        work(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
    else:
        main()
