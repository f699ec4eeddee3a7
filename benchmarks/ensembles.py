"""What can be made of three models of different alphas: members, average, vote, best_of, soups.

    python benchmarks/ensembles.py --model MODEL --json out.json

Members are LoRA runs on the demo's training pairs, the last of which are held back to pick the
greedy soup on; everything is judged on the demo's evaluation pairs, which nothing was picked on.
Accuracy and perplexity are of the pairs, tokens a second of greedy answers to their prompts. Every
row is measured in a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1] / "examples" / "demo"
DECISIONS = {  # name of the row: how the members decide, what is averaged
    "average": ("average", "probabilities"),
    "of logits": ("average", "logits"),
    "vote": ("vote", "probabilities"),
    "best_of": ("best_of", "probabilities"),
}
SOUPS = ("uniform", "greedy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--model", required=True)
    parser.add_argument("--alphas", nargs="+", type=float, default=[0.1, 0.5, 1.0])
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps of a member")
    parser.add_argument("--pairs", type=int, default=128, help="pairs to train on")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--prompts", type=int, default=8, help="prompts to answer")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--work", metavar="FOLDER", help="where members go (default: temporary)")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options)))
        return
    if options.work is None:
        options.work = tempfile.mkdtemp(prefix="ensembles-")
    work = Path(options.work)
    split(work, options.pairs)
    for alpha in options.alphas:
        train_member(options, work, alpha)
    members = [str(folder(work, alpha)) for alpha in options.alphas]
    for method in SOUPS:
        make_soup(work, members, method)
    names = ["base", *(f"alpha {alpha:g}" for alpha in options.alphas)]
    names += [*DECISIONS, *(f"{method} soup" for method in SOUPS)]
    rows = {name: in_child(name, work) for name in names}
    print(table(rows))
    if options.json:
        left_out = ("child", "json", "work")
        settings = {name: v for name, v in vars(options).items() if name not in left_out}
        result = {"settings": settings, "rows": rows}
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def folder(work: Path, alpha: float) -> Path:
    return work / f"alpha-{alpha:g}"


def split(work: Path, pairs: int) -> None:
    """The demo's training pairs: the first to train on, the others to pick the greedy soup on."""
    work.mkdir(parents=True, exist_ok=True)
    lines = (DEMO / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (work / "train.jsonl").write_text("\n".join(lines[:pairs]) + "\n", encoding="utf-8")
    (work / "pick.jsonl").write_text("\n".join(lines[pairs:]) + "\n", encoding="utf-8")


def orpo_dist(*words: str) -> None:
    print("orpo-dist", *words, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "orpo_dist", *words], check=True, stdout=sys.stderr)


def train_member(options: argparse.Namespace, work: Path, alpha: float) -> None:
    target = folder(work, alpha)
    if (target / "adapter_config.json").exists():
        return  # of an earlier call with the same --work
    orpo_dist(
        "train", "--model", options.model, "--data-path", str(work / "train.jsonl"), "--peft",
        "--orpo-alpha", str(alpha), "--max-steps", str(options.steps), "--lr", str(options.lr),
        "--batch-size", "4", "--gradient-accumulation", "2", "--save-strategy", "no",
        "--log", "none", "--project-name", str(target), "--overwrite",
    )  # fmt: skip


def make_soup(work: Path, members: list[str], method: str) -> None:
    target = work / f"{method}-soup"
    if not target.exists():
        orpo_dist("ensemble", "soup", str(target), *members, "--method", method,
                  "--data-path", str(work / "pick.jsonl"))  # fmt: skip


def in_child(name: str, work: Path) -> dict[str, Any]:
    print(f"measuring {name}", file=sys.stderr, flush=True)
    words = [*sys.argv[1:], "--work", str(work), "--child", name]
    done = subprocess.run(
        [sys.executable, __file__, *words], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table, in this process."""
    from orpo_dist import evaluate_model, load, load_ensemble
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.ensembles.evaluate import evaluate_ensemble

    quieten_libraries()
    work, name = Path(options.work), options.child
    members = [str(folder(work, alpha)) for alpha in options.alphas]
    data = str(DEMO / "eval.jsonl")
    handle: Any
    if name in DECISIONS:
        method, average_of = DECISIONS[name]
        handle = load_ensemble(members, method, average_of=average_of)
        judged = evaluate_ensemble(handle, data, progress=False)["models"][method]
        tokenizer = handle.members[0].handle.tokenizer
    else:
        handle = load(options.model if name == "base" else work / name.replace(" ", "-"))
        judged = evaluate_model(handle, data, progress=False)
        tokenizer = handle.tokenizer
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows[:: max(1, len(rows) // options.prompts)]]
    prompts = prompts[: options.prompts]
    handle.generate(prompts[:1], max_new_tokens=2)  # warm up
    start = time.perf_counter()
    texts = handle.generate(prompts, max_new_tokens=options.max_new_tokens)
    seconds = time.perf_counter() - start
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts)
    return {
        "accuracy": judged["preference_accuracy"],
        "accuracy_low": judged["accuracy_low"],
        "accuracy_high": judged["accuracy_high"],
        "margin": judged["mean_margin"],
        "perplexity": judged["perplexity"],
        "tokens_per_second": tokens / seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{'':<14}{'accuracy':>9}{'95 % interval':>18}{'margin':>9}{'perplexity':>12}"
        f"{'peak GB':>9}{'tokens/s':>10}"
    ]
    for name, row in rows.items():
        interval = f"{row['accuracy_low']:.3f} – {row['accuracy_high']:.3f}"
        perplexity = "–" if row["perplexity"] is None else f"{row['perplexity']:.2f}"
        lines.append(
            f"{name:<14}{row['accuracy']:>9.3f}{interval:>18}{row['margin']:>+9.3f}"
            f"{perplexity:>12}{row['peak_gb']:>9.2f}{row['tokens_per_second']:>10.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
