"""Seconds and bytes of a checkpoint's optimizer state: the one form, beside each engine's own.

    python benchmarks/checkpoints.py --tokenizer FOLDER --data pairs.jsonl --json out.json

Two processes (one for ``single``), a random Llama of 30M parameters in fp32, full training with
AdamW. Bytes and seconds leave out the model in Hugging Face's form, which both write first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orpo_dist.launch import presets
from orpo_dist.launch.argv import Topology, plan_launch

ENGINES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
TIMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", required=True, metavar="FOLDER", help="of any small model")
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    results = {}
    print(f"{'engine':<8}{'form':<8}{'save s':>8}{'load s':>8}{'MB':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        make_model(options.tokenizer, model)
        for engine in options.engines:
            found = measured(engine, model, options.data, Path(scratch))
            results[engine] = found
            for form, figures in found.items():
                print(
                    f"{engine:<8}{form:<8}{figures['save']:>8.2f}{figures['load']:>8.2f}"
                    f"{figures['bytes'] / 1e6:>8.0f}",
                    flush=True,
                )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def make_model(tokenizer: str, folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=16384, hidden_size=448, intermediate_size=1280, num_hidden_layers=9,
        num_attention_heads=7, num_key_value_heads=7, max_position_embeddings=512,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)


def measured(engine: str, model: Path, data: str, scratch: Path) -> dict[str, Any]:
    """Launch the workers and read what rank 0 measured."""
    plan = plan_launch(presets.find(engine), Topology(), 1 if engine == "single" else 2, [])
    argv = plan.argv[: plan.argv.index("-m", 3)]
    out = scratch / f"{engine}.json"
    worker = [__file__, str(model), data, str(scratch / engine), str(out)]
    environment = {**os.environ, **plan.environment, "MEASURE_CHECKPOINTS": "worker"}
    done = subprocess.run(
        [*argv, *worker], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(out.read_text(encoding="utf-8"))


def work(model: str, data: str, folder: Path, out: Path) -> None:
    """One of the workers: a step, then its state is saved and loaded in both forms."""
    from transformers import Trainer
    from transformers.integrations.deepspeed import deepspeed_load_checkpoint

    from orpo_dist import ORPOConfig, ORPOTrainer
    from orpo_dist.base.console import quieten_libraries

    quieten_libraries()
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()[:8]]
    config = ORPOConfig(
        project_name=str(folder), max_steps=1, batch_size=1, global_batch_size=2, log="none",
        save_strategy="no", async_save=False,
    )  # fmt: skip
    trainer = ORPOTrainer(model, config, rows)
    trainer.train()
    here = trainer.runtime

    def load_native(path: str) -> None:
        if here.engine.deepspeed:
            deepspeed_load_checkpoint(trainer.model_wrapped, path)
        else:
            if here.engine.name == "fsdp2":
                Trainer._load_from_checkpoint(trainer, path, trainer.model_wrapped)
            Trainer._load_optimizer_and_scheduler(trainer, path)

    forms: dict[str, tuple[Callable[[str], None], Callable[[str], None]]] = {
        "own": (lambda path: Trainer._save_optimizer_and_scheduler(trainer, path), load_native),
        "one": (trainer._save_optimizer_and_scheduler, trainer._load_optimizer_and_scheduler),
    }
    found: dict[str, Any] = {form: {"save": [], "load": []} for form in forms}
    for number in range(TIMES):  # by turns, as the machine may be busy
        for form, (save, load) in forms.items():
            path = folder / f"{form}-{number}"
            path.mkdir(parents=True, exist_ok=True)
            for what, does in (("save", save), ("load", load)):
                here.wait()
                start = time.perf_counter()
                does(str(path))
                here.wait()
                found[form][what].append(time.perf_counter() - start)
            found[form]["bytes"] = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            here.wait()
            if here.is_main:
                shutil.rmtree(path)
    if here.is_main:
        for figures in found.values():
            figures |= {what: statistics.median(figures[what]) for what in ("save", "load")}
        out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    if os.environ.get("MEASURE_CHECKPOINTS") == "worker":
        work(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
