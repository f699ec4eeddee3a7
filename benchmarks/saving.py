"""How long a checkpoint keeps training waiting: to the disk at once, and beside training.

    python benchmarks/saving.py --tokenizer FOLDER --data pairs.jsonl [--size 135M 1B] [--json FILE]

One process, a random Llama of that size, all of it trained with AdamW (135M in fp32; 1B in bf16 and
without a forward pass, which takes minutes on a CPU).
Steps with a checkpoint alternate between the two ways; a stall is what such a step, and those that
pass until the checkpoint is in its place, take beyond steps without one. Free disk is needed for
two checkpoints (about 2.2 and 8.6 GB each), and memory for the model, its state and one checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

SIZES: dict[str, dict[str, int]] = {
    "135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
}  # fmt: skip
DTYPES = {"135M": "float32", "1B": "bfloat16"}
VOCABULARY = 49152
LENGTH = 32  # tokens of prompts and answers
APART = 8  # steps between two checkpoints, in which the first has to come to the disk
WAYS = ("at once", "beside training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", required=True, metavar="FOLDER", help="of any small model")
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--size", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--times", type=int, default=3, help="checkpoints of each way")
    parser.add_argument("--scratch", metavar="FOLDER", help="on the disk to measure")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    results = {}
    print(f"{'model':<8}{'way':<18}{'GB':>6}{'step s':>9}{'stall s':>9}{'whole after s':>15}")
    for size in options.size:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            results[size] = measured(size, options, Path(scratch))
        for way, found in results[size].items():
            print(
                f"{size:<8}{way:<18}{found['bytes'] / 1e9:>6.1f}{found['step']:>9.2f}"
                f"{found['stall']:>9.2f}{found['whole']:>15.2f}",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


class Clock(TrainerCallback):
    """Seconds of every step from its beginning to the next one's, with what is saved between."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._began: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if self._began is not None:
            self.steps.append(now - self._began)
        self._began = now


def measured(size: str, options: argparse.Namespace, scratch: Path) -> dict[str, dict[str, float]]:
    """Medians in seconds, and bytes of a checkpoint, by way."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from orpo_dist import ORPOConfig, ORPOTrainer
    from orpo_dist.base.console import quieten_libraries

    quieten_libraries()
    words = AutoTokenizer.from_pretrained(options.tokenizer)
    config = LlamaConfig(
        vocab_size=VOCABULARY, tie_word_embeddings=True, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id, **SIZES[size],
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, DTYPES[size]))
    lines = Path(options.data).read_text(encoding="utf-8").splitlines()[:64]
    saves, apart = 2 * options.times, APART
    settings = ORPOConfig(
        project_name=str(scratch / "run"), max_steps=saves * apart + 2, batch_size=1, log="none",
        gradient_accumulation=1, save_strategy="steps", save_steps=apart, save_total_limit=1,
        max_prompt_length=LENGTH, max_completion_length=LENGTH, overlong="truncate",
    )  # fmt: skip

    class Timed(ORPOTrainer):
        size = 0

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.whole: dict[str, list[float]] = {way: [] for way in WAYS}

        def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
            """Of the larger model only the optimizer's step is made, as CPUs are slow in bf16."""
            if size == "135M":
                return super().training_step(model, inputs, *args)
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            return torch.zeros(())

        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            self.way = WAYS[self.state.global_step // apart % 2]
            self.async_save, self.began = self.way == WAYS[1], time.perf_counter()
            super()._save_checkpoint(*args, **kwargs)

        def _finish_saving(self) -> None:
            saving = self._saving
            super()._finish_saving()
            if saving is not None:
                self.whole[self.way].append(time.perf_counter() - self.began)
                self.size = saving.bytes

    clock = Clock()
    rows = [json.loads(line) for line in lines]
    trainer = Timed(model, settings, rows, processing_class=words, callbacks=[clock])
    trainer.train()
    found: dict[str, dict[str, float]] = {}
    steps = list(enumerate(clock.steps, 1))
    alone = [s for at, s in steps if at % apart and at // apart % 2 == WAYS.index("at once")]
    usual = statistics.median(alone)  # nothing is saved in them, nor goes to the disk
    for number, way in enumerate(WAYS):
        stalls = [
            sum(clock.steps[at - 1 : at - 1 + apart]) - apart * usual
            for at in range(apart, saves * apart + 1, apart)
            if at // apart % 2 == number and at - 1 + apart <= len(clock.steps)
        ]
        found[way] = {
            "bytes": trainer.size, "step": usual, "stall": statistics.median(stalls),
            "whole": statistics.median(trainer.whole[way]),
        }  # fmt: skip
    shutil.rmtree(scratch / "run", ignore_errors=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
