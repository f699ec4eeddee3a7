"""Folders of sweeps as they look afterwards, written without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orpo_dist.config import ORPOConfig, dump_config
from orpo_dist.sweeps.protocol import Trial, folder_of
from orpo_dist.sweeps.searched.files import dump_sweep, load_sweep


def make_sweep(project: Path, content: dict[str, Any], *trials: Trial, pairs: int = 200) -> Path:
    """A sweep's folder with these trials; those with a metric also have a curve."""
    project.mkdir(parents=True, exist_ok=True)
    sweep = load_sweep(content)
    (project / "sweep.yaml").write_text(dump_sweep(sweep))
    for trial in trials:
        trial.save(project)
        folder = folder_of(project, trial.name)
        settings = {k: v for k, v in trial.settings.items() if k != "engine"}
        config = ORPOConfig(model="m", **settings, project_name=str(folder))
        (folder / "config.yaml").write_text(dump_config(config))
        (folder / "data_report.json").write_text(json.dumps({"valid": {"pairs": pairs}}))
        if trial.metrics:
            lines = []
            for share in (0.5, 1.0):
                lines.append({
                    "step": int(trial.step * share), "eval/loss": 1.0, "eval/loss/orpo": 1.0,
                    "eval/loss/sft": 2.0 - share,
                    "eval/rewards/accuracies": trial.metrics["accuracy"] * share,
                })  # fmt: skip
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "metrics.jsonl").write_text(text)
    return project


def trial(name: str, accuracy: float, perplexity: float, **more: Any) -> Trial:
    """A finished trial, unless ``more`` says otherwise."""
    options = {k: more.pop(k) for k in ("status", "why", "failures") if k in more}
    return Trial(
        name, more, **{"status": "finished", **options}, step=100, percent=100.0,
        metrics={"accuracy": accuracy, "perplexity": perplexity}, seconds=10.0,
    )  # fmt: skip


def alphas(project: Path, *extra: Trial) -> Path:
    """Three alphas with three seeds each: 0.5 is best, 1 costs too much, 0 is plain tuning."""
    content = {"space": {"orpo_alpha": {"grid": [0, 0.5, 1]}}, "repeats": 3}
    accuracies = {0: (0.60, 0.61, 0.59), 0.5: (0.80, 0.82, 0.81), 1: (0.79, 0.83, 0.76)}
    perplexities = {0: 4.0, 0.5: 4.2, 1: 6.0}
    made = [
        trial(
            f"{alpha}-{seed}", values[seed], perplexities[alpha], orpo_alpha=float(alpha), seed=seed
        )
        for alpha, values in accuracies.items()
        for seed in range(3)
    ]
    return make_sweep(project, content, *made, *extra)
