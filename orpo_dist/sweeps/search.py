"""``find_best_alpha``: the question that most sweeps ask, as one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.sweeps.found.advice import advise
from orpo_dist.sweeps.found.page import REPORT
from orpo_dist.sweeps.found.results import Results, read_results
from orpo_dist.sweeps.running.driver import refuse_stages, sweep
from orpo_dist.sweeps.searched.files import load_sweep

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class BestAlpha:
    """alpha: ranks first. config: of its best run. advice: what to make of it. results: all."""

    alpha: float
    config: ORPOConfig
    advice: list[str]
    results: Results

    @property
    def page(self) -> Path:
        return self.results.project / REPORT


def find_best_alpha(
    config: ORPOConfig | Mapping[str, Any],
    alphas: Iterable[float] = ALPHAS,
    resume: bool = False,
    rounds: int = 1,
    **settings: Any,
) -> BestAlpha:
    """Train once per alpha, all else as in ``config``, and rank by preference accuracy.

    config: needs evaluation data; its ``project_name`` becomes the folder of the sweep.
    settings: of the sweep, e.g. ``repeats=3`` or ``workers_per_trial=8``. rounds: 2 and more look
    more closely around the best. Raises ``UserError`` for mistakes, or if no trial finishes.
    """
    refuse_stages(settings.get("stages"))
    base = config.model_dump(exclude_unset=True) if isinstance(config, ORPOConfig) else dict(config)
    base.pop("orpo_alpha", None)
    for owned in ("overwrite", "resume_from_checkpoint"):
        base.pop(owned, None)
    grid = [float(alpha) for alpha in alphas]
    content = {"base": base, "space": {"orpo_alpha": {"grid": grid}}, **settings}
    made = load_sweep(content)
    sweep(made, resume=resume, rounds=rounds)
    project = Path(made.project_name).expanduser().resolve()
    results = read_results(project)
    trial = results.best_trial
    if trial is None:
        raise UserError(f"{project}: no trial has finished; {' '.join(advise(results))}")
    chosen = made.run_config(trial.settings, project / "best").replace(
        resume_from_checkpoint="never"
    )
    return BestAlpha(float(trial.settings["orpo_alpha"]), chosen, advise(results), results)
