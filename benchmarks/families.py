"""Every causal language model of transformers, beside an oracle of single plain forwards.

    python benchmarks/families.py                    # all of them, a line a family
    python benchmarks/families.py llama gemma4_text --json out.json
    python benchmarks/families.py --read out.json --docs       # the table of docs/models.md

A tiny random model of each family is loaded, scored, trained for two steps, saved, loaded again and
planned, in full, with LoRA on all linear layers and with gradient checkpointing, as ``orpo-dist
train`` does it. Its log-probs and gradients are held against one plain forward an answer, without
padding, with the model's own eager attention, on pairs that lie within every window, chunk and
top-k of the model and on pairs that go far beyond. Said of each: packed or padded (exact, that is),
refused (in which words), WRONG or TRACEBACK; WRONG is also what is decided otherwise in bf16.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

MEMORY = 12 * 2**30  # bytes of address space of one family's process; a third of it is libraries
SECONDS = 120  # of computing

DOCS = ROOT / "docs" / "models.md"
MARKERS = ("<!-- families: generated -->", "<!-- end of families -->")
ORDER = ("packed", "padded", "refused", "WRONG", "TRACEBACK")
SIZES_SAID = re.compile(r" \(.*\)$")
REFUSED = {
    "encoder-decoder": "encoder and decoder", "images or sound": "images or sound beside text",
    "no causal language model by": "no causal language model by its config",
    "attention mask": "padding is not masked",
    "in both directions": "sees both ways", "states of another": "drafts for another model",
    "one length alone": "random hashes, one length", "requires the": "needs a library more",
}  # fmt: skip

Found = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="model types (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--read", nargs="+", metavar="FILE", help="figures to show, and run none")
    parser.add_argument("--docs", action="store_true", help="write the table of docs/models.md")
    options = parser.parse_args()
    found: list[Found] = []
    runs = _read(options.read) if options.read else take(options.names or families(), options.jobs)
    for entry in runs:
        print(line_of(entry), flush=True)
        found.append(entry)
        if options.json:
            Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.docs:
        write_docs(found)
    counts = Counter(entry["verdict"] for entry in found)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    return int(any(verdict.isupper() for verdict in counts))


def _read(files: list[str]) -> list[Found]:
    """Figures of earlier runs; those of later files win."""
    found = {}
    for file in files:
        found |= {e["family"]: e for e in json.loads(Path(file).read_text(encoding="utf-8"))}
    return [found[name] for name in sorted(found)]


def write_docs(found: list[Found]) -> None:
    """The families by what they get and why, between the two markers of docs/models.md."""
    kinds: dict[tuple[int, str], list[str]] = {}
    for entry in found:
        verdict = entry["verdict"]
        reason = SIZES_SAID.sub("", entry.get("reason", "") if verdict == "padded" else "")
        if verdict == "refused":
            reason = next((short for words, short in REFUSED.items() if words in entry["why"]), "")
        what = f"{verdict}: {reason}" if reason else verdict
        kinds.setdefault((ORDER.index(verdict), what), []).append(entry["family"])
    rows = [
        f"| {what} | {len(names)} | {', '.join(names)} |"
        for (_, what), names in sorted(kinds.items(), key=lambda item: (item[0][0], -len(item[1])))
    ]
    table = "\n".join(["| | | families |", "|---|---|---|", *rows])
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    text = f"{before}{MARKERS[0]}\n\n{table}\n\n{MARKERS[1]}{after}"
    DOCS.write_text(text, encoding="utf-8")


def families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def take(names: list[str], jobs: int) -> Any:
    """Figures of every family, each from a process of its own, as they are ready.

    Forked from one that has read the libraries, which takes longer than most families do.
    """
    _warm_up()
    waiting, running = list(names), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            scratch = tempfile.TemporaryDirectory()
            process = os.fork()
            if process == 0:
                _child(name, Path(scratch.name))
            running[process] = name, scratch, time.monotonic()
        process, _ = os.wait()
        name, scratch, began = running.pop(process)
        result = Path(scratch.name, "found.json")
        entry = {"family": name, "verdict": "TRACEBACK", "why": "died, or took too long"}
        if result.exists():
            entry = json.loads(result.read_text(encoding="utf-8"))
        scratch.cleanup()
        yield {**entry, "seconds": round(time.monotonic() - began, 1)}


def _child(name: str, scratch: Path) -> None:
    import torch

    from benchmarks.zoo.check import check

    # A fork breaks torch's pool of threads. It is made anew by whoever asks first, here; threads
    # that load weights would ask at once, and some would find none.
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["ORPO_DIST_CACHE"] = str(scratch / "cache")
    with Path(scratch, "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    (scratch / "found.json").write_text(json.dumps(check(name, scratch)), encoding="utf-8")
    os._exit(0)


def _warm_up() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM

    import benchmarks.zoo.check

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("orpo_dist").setLevel(logging.WARNING)
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 8)
    heads = dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1)
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, pad_token_id=None))
    with tempfile.TemporaryDirectory() as scratch:
        benchmarks.zoo.check.check("llama", Path(scratch), ["full", "LoRA"])


def line_of(entry: Found) -> str:
    figures = [
        max(logp for kind in ("short", "long") for logp in [mode[kind][0]])
        for mode in entry.get("modes", {}).values()
        if "short" in mode
    ]
    worst = f"{max(figures):.1e}" if figures else ""
    plan = entry.get("plan", {})
    said = plan.get("traceback") or plan.get("refused") or plan.get("untraced") or ""
    if plan.get("counts"):
        said = f"counts {plan['counts']:+} parameters"
    why = entry["why"] + (f" | plan: {said}" if said else "")
    return f"{entry['verdict']:<10}{entry['family']:<26}{worst:>8} {entry['seconds']:>6} s  {why}"


if __name__ == "__main__":
    sys.exit(main())
