"""The demo: a small chat model learns to answer at once, without filler.

``make demo`` runs it. It trains a LoRA adapter on 128 of the 192 pairs in ``train.jsonl`` and
judges on the 64 pairs of ``eval.jsonl``, which the training never sees.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from orpo_dist.base.console import quieten_libraries, set_up_logging  # noqa: E402

set_up_logging()

from smollm2 import smollm2  # noqa: E402

from orpo_dist import TrainedModel, evaluate_model, load, load_config, train  # noqa: E402
from orpo_dist.evaluation import format_evaluation  # noqa: E402

QUESTIONS = 3


def answers(handle: TrainedModel, prompts: list[str]) -> list[str]:
    return [text.strip() for text in handle.generate(prompts, max_new_tokens=60)]


def main() -> None:
    quieten_libraries()
    evaluation_file = str(HERE / "eval.jsonl")
    rows = [json.loads(line) for line in Path(evaluation_file).read_text().splitlines()]
    prompts = [row["prompt"] for row in rows[:: len(rows) // QUESTIONS]][:QUESTIONS]

    model = smollm2()
    config = load_config(
        HERE / "demo.yaml",
        {
            "model": str(model),
            "data_path": str(HERE / "train.jsonl"),
            "valid_data_path": evaluation_file,
            "project_name": f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}",
        },
    )
    print("\n== before: how the model judges 64 pairs it will never train on", flush=True)
    base = load(model, config)
    before, said_before = evaluate_model(base, evaluation_file), answers(base, prompts)
    print(format_evaluation(before))

    print("\n== training", flush=True)
    started = time.monotonic()
    tuned = train(config)
    seconds = time.monotonic() - started

    print("\n== after", flush=True)
    after, said_after = evaluate_model(tuned, evaluation_file), answers(tuned, prompts)
    print(format_evaluation(after))
    print("\n== the same questions, before and after")
    for prompt, old, new in zip(prompts, said_before, said_after, strict=True):
        print(f"\nQ: {prompt}\n  before: {old}\n  after:  {new}")
    print(
        f"\nheld-out preference accuracy {before['preference_accuracy']:.1%} -> "
        f"{after['preference_accuracy']:.1%}, margin {before['mean_margin']:+.3f} -> "
        f"{after['mean_margin']:+.3f} nats per token, trained in {seconds:.0f} s"
    )
    print(f"report: {tuned.path / 'report.html'}")
    print(tuned.path)


if __name__ == "__main__":
    main()
