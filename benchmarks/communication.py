"""Count what every engine sends in one optimizer step, from the profiler, beside the theory.

    python benchmarks/communication.py --model FOLDER --data pairs.jsonl --json out.json

Two processes per engine, full training in fp32. Counted are the collectives that the engine asks
torch.distributed for (``c10d::…`` in the trace), each with what ring algorithms move per process
and unit of its size: all-reduce 2, all others 1; in units of Ψ, the bytes of all weights. That is
how the theory counts (DDP and ZeRO-1 2 Ψ, ZeRO-2 2 Ψ, ZeRO-3 3 Ψ), independent of the backend and,
up to (N - 1) / N, of the number of processes N.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from orpo_dist.launch import presets
from orpo_dist.launch.argv import Topology, plan_launch
from orpo_dist.launch.presets import Preset

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
MICRO_BATCHES = (1, 4)
WIDTH = {"float": 4, "c10::BFloat16": 2, "c10::Half": 2, "double": 8, "long int": 8, "int": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--deepspeed-config", metavar="FILE", help="in place of the preset's")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    print(f"{'engine':<8}{'micro-batches':>14}{'Ψ a step':>10}  of which")
    for engine in options.engines:
        for micro_batches in MICRO_BATCHES:
            preset = presets.find(engine, options.deepspeed_config)
            counted = count(preset, micro_batches, options.model, options.data)
            results[f"{engine}:{micro_batches}"] = counted
            parts = ", ".join(f"{k} {v:.2f}" for k, v in counted["by_collective"].items())
            print(f"{engine:<8}{micro_batches:>14}{counted['total']:>10.2f}  {parts}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def count(preset: Preset, micro_batches: int, model: str, data: str) -> dict[str, Any]:
    """Launch two workers and read what rank 0 counted."""
    with tempfile.TemporaryDirectory() as scratch:
        plan = plan_launch(preset, Topology(), 2, [])
        argv = plan.argv[: plan.argv.index("-m", 3)]
        worker = [__file__, model, data, str(micro_batches), scratch]
        environment = {**os.environ, **plan.environment, "COUNT_COMMUNICATION": "worker"}
        done = subprocess.run(
            [*argv, *worker], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads((Path(scratch) / "counted.json").read_text(encoding="utf-8"))


def work(model: str, data: str, micro_batches: int, scratch: Path) -> None:
    """One of the workers: train three steps and profile the last."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    from orpo_dist import ORPOConfig, ORPOTrainer
    from orpo_dist.base.console import quieten_libraries

    class Count(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
                self.profile.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                self.profile.stop()

    quieten_libraries()
    counter = Count()
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    config = ORPOConfig(
        project_name=str(scratch / "run"), max_steps=3, batch_size=1, log="none",
        global_batch_size=2 * micro_batches, save_strategy="no", max_grad_norm=0,
    )  # fmt: skip
    trainer = ORPOTrainer(model, config, rows, callbacks=[counter])
    trainer.train()
    if trainer.args.process_index == 0:
        trace = scratch / "trace.json"
        counter.profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        weights = sum(
            getattr(p, "ds_numel", p.numel()) * p.element_size() for p in trainer.model.parameters()
        )
        (scratch / "counted.json").write_text(json.dumps(summary(events, weights)))


def summary(events: list[dict[str, Any]], weights: int) -> dict[str, Any]:
    """Traffic by collective, in units of the weights."""
    sums: dict[str, float] = defaultdict(float)
    for event in events:
        if str(event.get("name")).startswith("c10d::") and "args" in event:
            kind, moved = traffic(event)
            sums[kind] += moved / weights
    found = {kind: total for kind, total in sorted(sums.items()) if total > 0.005}
    return {"total": sum(found.values()), "by_collective": found, "weights_bytes": weights}


def traffic(event: dict[str, Any]) -> tuple[str, float]:
    """The kind of a collective and the bytes it moves, per process, up to (N - 1) / N."""
    dims, types = event["args"]["Input Dims"], event["args"]["Input type"]
    name = event["name"].removeprefix("c10d::")
    sizes = [elements(shape) for shape in dims]
    width = next((WIDTH[kind] for kind in types if kind in WIDTH), 4)
    if name == "allreduce_":
        return "all-reduce", 2 * sizes[0] * width
    if "reduce_scatter" in name:
        return "reduce-scatter", max(sizes) * width
    if "allgather_base" in name or "allgather_into_tensor" in name:
        return "all-gather", max(sizes) * width
    if name == "allgather_":
        return "all-gather", 2 * max(sizes) * width  # its inputs are shown; two processes
    return name.strip("_"), max(sizes, default=0) * width


def elements(shape: list[Any]) -> int:
    """Elements of a tensor, or of all tensors in a list of them."""
    if shape and isinstance(shape[0], list):
        return sum(math.prod(one) for one in shape)
    return math.prod(shape) if shape else 0


if __name__ == "__main__":
    if os.environ.get("COUNT_COMMUNICATION") == "worker":
        work(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
