"""Where the time of a training step goes: attention, head, products, casts, optimizer, host.

    python benchmarks/parts.py --model MODEL --data pairs.jsonl [--precision bf16] [--peft]

The steps are those of ORPOTrainer, data loading and all, under torch's profiler. An operation of
the backward pass belongs to the part whose forward made it, and the recomputation of the head to
the head. On a GPU times are those of its kernels, and the host's is that in which it has none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback

RANGES = ("attention", "head", "optimizer")
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul"}
CASTS = {"aten::_to_copy", "aten::to"}
OPERATIONS = ("aten::", "torch_attn::")
PARTS = ("attention", "head", "products", "casts", "optimizer", "others", "host")


class Watch(TrainerCallback):
    """Profiles the steps after the first ``warm`` ones."""

    def __init__(self, warm: int, steps: int) -> None:
        self.warm, self.steps, self.seconds = warm, steps, 0.0
        kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
        self.profile = profile(activities=kinds)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warm:
            self.profile.start()
            self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warm + self.steps:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.began
            self.profile.stop()


@contextlib.contextmanager
def named(trainer: Any) -> Iterator[None]:
    """Within it, what attention and head compute lies in ranges of these names."""
    from orpo_dist.scoring import attention
    from orpo_dist.scoring.packed_forward import causal_model

    head, plain = causal_model(trainer.model).get_output_embeddings(), attention._packed
    own = head.forward

    def within(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def ranged(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                return call(*args, **kwargs)

        return ranged

    attention._packed = within("attention", plain)
    head.forward = within("head", own)
    try:
        yield
    finally:
        attention._packed, head.forward = plain, own


def parts_of(trainer: Any, warm: int = 2, steps: int = 3) -> dict[str, float]:
    """Seconds a step by part; ``step`` is the whole. The trainer makes ``warm + steps`` of them."""
    watch = Watch(warm, steps)
    trainer.add_callback(watch)
    with named(trainer):
        trainer.train()
    assert watch.seconds, "the run has fewer steps"
    on_gpu = torch.cuda.is_available()
    sums = dict.fromkeys(PARTS, 0.0)
    events = [e for e in watch.profile.events() if e.device_type == DeviceType.CPU]
    forward = _ranges(events)
    for event in events:
        if on_gpu:  # also of kernels that are started without an operation of torch
            spent, counts = event.self_device_time_total, True
        else:  # what passes between operations is the host's
            spent, counts = event.self_cpu_time_total, event.name.startswith(OPERATIONS)
        if counts:
            sums[_part(event, forward)] += spent / 1e6 / steps
    whole = watch.seconds / steps
    return {**sums, "host": whole - sum(sums.values()), "step": whole}


def _ranges(events: list[Any]) -> dict[int, str]:
    """The part of every forward operation that autograd has numbered."""
    found = {}
    for event in events:
        if event.sequence_nr >= 0 and event.scope != 1:
            name = next((e.name for e in _up(event) if e.name in RANGES), None)
            if name is not None:
                found[event.sequence_nr] = name
    return found


def _part(event: Any, forward: dict[int, str]) -> str:
    kind = "others"
    for one in _up(event):
        if one.name.startswith(("Optimizer.step", "Optimizer.zero_grad")):
            return "optimizer"
        if one.name in RANGES:
            return str(one.name)
        if one.scope == 1 and one.sequence_nr in forward:
            return forward[one.sequence_nr]
        if one.name in PRODUCTS:
            kind = "products"
        elif one.name in CASTS and kind == "others":
            kind = "casts"
    return kind


def _up(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def table(found: dict[str, float]) -> str:
    lines = [f"{'part':<12}{'ms/step':>10}{'share':>8}"]
    lines += [
        f"{name:<12}{1e3 * found[name]:>10.1f}{found[name] / found['step']:>8.1%}"
        for name in (*PARTS, "step")
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--precision", choices=("none", "bf16"), help="default: as train has it")
    parser.add_argument("--peft", action="store_true")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    from orpo_dist import ORPOConfig, ORPOTrainer
    from orpo_dist.base.console import quieten_libraries

    quieten_libraries()
    rows = [json.loads(line) for line in Path(options.data).read_text("utf-8").splitlines()]
    config = ORPOConfig(
        model=options.model, project_name=tempfile.mkdtemp(), peft=options.peft, log="none",
        mixed_precision=options.precision, max_steps=2 + options.steps, save_strategy="no",
        global_batch_size=options.pairs, max_prompt_length=512, max_completion_length=512,
        logging_steps=100,
    )  # fmt: skip
    found = parts_of(ORPOTrainer(args=config, train_dataset=rows), 2, options.steps)
    print(table(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
