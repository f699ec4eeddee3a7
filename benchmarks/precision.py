"""How far the engines' curves lie apart in bf16, from each other and from fp32.

    python benchmarks/precision.py --json out.json

A small random model (vocabulary 2048, width 128, 4 layers) trains for ten optimizer steps of 8
pairs, 4 micro-batches a process, on every engine with two processes; the last step of an epoch is
short, so that the ranks differ. Full training and LoRA, several orders of the data. Said of every
engine: the largest relative distance of any step's loss and gradient norm from the same training
in fp32 and from bf16 on one process, the worst and the mean over the orders.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from orpo_dist.base import exits
from orpo_dist.launch import presets
from orpo_dist.launch.argv import Topology, plan_launch

ENGINES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
METHODS: dict[str, dict[str, Any]] = {"full": {"lr": 5e-4}, "lora": {"lr": 2e-3, "peft": True}}
METRICS = ("loss/orpo", "grad_norm")
OTHERS = ("fp32", "one process")
STEPS, PAIRS = 10, 21  # epochs of 8 + 8 + 5 pairs
ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "demo" / "train.jsonl"

Curves = dict[str, list[float]]  # a metric at every step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--deepspeed-config", metavar="FILE", help="in place of the presets'")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    print(f"{'':<14}" + "".join(f"{m + ': ' + o:>22}" for m in METRICS for o in OTHERS))
    with tempfile.TemporaryDirectory() as scratch:
        make_inputs(Path(scratch))
        cases = [(method, seed) for method in options.methods for seed in options.seeds]
        exact = run("single", "none", cases, scratch)
        one = run("single", "bf16", cases, scratch)
        for engine in options.engines:
            found = one
            if engine != "single":
                found = run(engine, "bf16", cases, scratch, options.deepspeed_config)
            for method in options.methods:
                seeds = [f"{method} {seed}" for seed in options.seeds]
                row = summary(seeds, found, {"fp32": exact, "one process": one})
                results[f"{method} {engine}"] = row
                print(f"{method:<6}{engine:<8}" + line(row), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    cells = (row[f"{metric} from {other}"] for metric in METRICS for other in OTHERS)
    return "".join(f"{cell['mean']:>11.1e} to {cell['worst']:.1e}" for cell in cells)


def make_inputs(folder: Path) -> None:
    """A random model with its tokenizer, in ``folder/model``."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    lines = DATA.read_text(encoding="utf-8").splitlines()
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.train_from_iterator(
        [text for row in lines for text in json.loads(row).values()],
        trainers.BpeTrainer(
            vocab_size=2048, special_tokens=["<pad>", "</s>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        eos_token_id=1, pad_token_id=0, bos_token_id=None, initializer_range=0.06,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def run(
    engine: str,
    precision: str,
    cases: list[tuple[str, int]],
    scratch: str,
    deepspeed_config: str | None = None,
) -> dict[str, Curves]:
    """The curves of every method and seed, from trainings one after the other on one engine."""
    processes = 1 if engine == "single" else 2
    plan = plan_launch(
        presets.find(engine, deepspeed_config if engine.startswith("zero") else None),
        Topology(), processes, [],
    )  # fmt: skip
    argv = plan.argv[: plan.argv.index("-m", 3)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **plan.environment}
    environment["PRECISION"] = "worker"
    done = subprocess.run(
        [*argv, __file__, precision, json.dumps(cases), scratch],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads((Path(scratch) / "curves.json").read_text(encoding="utf-8"))


def work(precision: str, cases: list[tuple[str, int]], scratch: Path) -> None:
    """One of the workers: train every case."""
    from orpo_dist import ORPOConfig, ORPOTrainer
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.engines import runtime
    from orpo_dist.upstream.accelerate import forget_engine

    quieten_libraries()
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()[:PAIRS]]
    found = {}
    for method, seed in cases:
        config = ORPOConfig(
            project_name=str(scratch / "run"), max_steps=STEPS, batch_size=1, seed=seed,
            global_batch_size=8, mixed_precision=precision, scheduler="constant", log="none",
            warmup_ratio=0.0, logging_steps=1, save_strategy="no", max_prompt_length=48,
            max_completion_length=64,            max_tokens_per_microbatch=None, **METHODS[method],
        )  # fmt: skip
        trainer = ORPOTrainer(str(scratch / "model"), config, rows)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        assert len(log) == STEPS
        found[f"{method} {seed}"] = {m: [float(entry[m]) for entry in log] for m in METRICS}
        forget_engine()
    if runtime.start().is_main:
        (scratch / "curves.json").write_text(json.dumps(found), encoding="utf-8")
    runtime.leave()


def summary(
    seeds: list[str], found: dict[str, Curves], others: dict[str, dict[str, Curves]]
) -> dict[str, Any]:
    """How far an engine's curves lie from others': mean and worst over the seeds."""
    row = {}
    for name, other in others.items():
        for metric in METRICS:
            apart = [distance(found[seed][metric], other[seed][metric]) for seed in seeds]
            row[f"{metric} from {name}"] = {
                "mean": sum(apart) / len(apart),
                "worst": max(apart),
            }
    return row


def distance(mine: list[float], theirs: list[float]) -> float:
    """The largest relative difference of any step."""
    return max(abs(a / b - 1) for a, b in zip(mine, theirs, strict=True))


if __name__ == "__main__":
    if os.environ.get("PRECISION") == "worker":
        work(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
        exits.leave(0)
    else:
        main()
