"""Which trials of a sweep become the members of an ensemble: good ones that differ."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orpo_dist.base.types import UserError
from orpo_dist.evaluation.evaluate import judge, shared_config
from orpo_dist.evaluation.paired import why_not_comparable
from orpo_dist.models.trained import run_config
from orpo_dist.sweeps.found.results import read_results
from orpo_dist.sweeps.protocol import folder_of

logger = logging.getLogger("orpo_dist")


@dataclass(frozen=True)
class Candidate:
    """A finished trial whose model was kept. settings: seed left out. value: higher is better."""

    path: str
    settings: str
    value: float


def candidates_of(project: Path) -> list[Candidate]:
    """The candidates of a sweep and its rounds, best first; ``UserError`` if there are none."""
    results = read_results(project)
    sign = 1.0 if results.mode == "max" else -1.0
    found = []
    for point in results.points:
        settings = {name: value for name, value in point.settings.items() if name != "seed"}
        for trial in point.finished:
            folder = folder_of(point.project, trial.name)
            known = math.isfinite(trial.metrics.get(results.metric, math.nan))
            if known and any(folder.glob("*.safetensors")):
                value = sign * trial.metrics[results.metric]
                found.append(Candidate(str(folder), json.dumps(settings, default=str), value))
    if not found:
        raise UserError(
            f"{project}: no trial has finished and kept its model (a sweep's keep_models says how "
            "many are kept)"
        )
    return sorted(found, key=lambda candidate: -candidate.value)


def pick_by_settings(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best trial of every setting, best setting first; then their second best seeds, and so on.

    candidates: best first.
    """
    rounds: dict[str, int] = {}
    ordered = []
    for place, candidate in enumerate(candidates):
        turn = rounds[candidate.settings] = rounds.get(candidate.settings, -1) + 1
        ordered.append((turn, place, candidate))
    return [candidate for *_, candidate in sorted(ordered, key=lambda entry: entry[:2])][:count]


def pick_by_pairs(margins: np.ndarray, count: int) -> list[int]:
    """Rows of (M, N) margins that vote best together on N pairs, in the order they are taken.

    Forward selection (Caruana et al. 2004), no row twice: the next is the one with which the mean
    margin is right most often; ties go to the higher mean margin over wrong pairs, then to the
    earlier row. So a member that errs elsewhere beats a slightly better one that errs alike.
    """
    taken: list[int] = []
    total = np.zeros(margins.shape[1])

    def worth(row: int) -> tuple[float, float, int]:
        mean = (total + margins[row]) / (len(taken) + 1)
        return float((mean > 0).mean()), float(np.minimum(mean, 0).mean()), -row

    while len(taken) < min(count, len(margins)):
        best = max((row for row in range(len(margins)) if row not in taken), key=worth)
        taken.append(best)
        total += margins[best]
    return taken


def score_candidates(
    candidates: Sequence[Candidate],
    data_path: Sequence[str],
    settings: Mapping[str, Any],
    full_precision: bool = False,
) -> np.ndarray:
    """Margins of every candidate on the same pairs, (M, N), one model in memory at a time.

    full_precision: as in ``load``.
    """
    margins, first = [], None
    config = run_config(candidates[0].path)
    for candidate in candidates:
        own = shared_config(config, run_config(candidate.path), settings)
        judged = judge(candidate.path, data_path, own, full_precision=full_precision)
        assert judged.table is not None and judged.pairs is not None
        first = first or judged.pairs
        if reason := why_not_comparable(first, judged.pairs):
            raise UserError(f"{candidates[0].path} and {candidate.path}: {reason}")
        margins.append(judged.table.margin)
        logger.info("%s: accuracy %.3f", candidate.path, judged.table.correct.mean())
    return np.stack(margins)


def pick(
    project: Path,
    count: int | None,
    data_path: Sequence[str],
    settings: Mapping[str, Any],
    full_precision: bool = False,
) -> list[str]:
    """Paths of the members: all trials, or the best ``count`` that differ.

    With pairs they differ in what they get wrong (``pick_by_pairs``), without in their settings.
    """
    candidates = candidates_of(project)
    count = len(candidates) if count is None else count
    if data_path:
        margins = score_candidates(candidates, data_path, settings, full_precision)
        rows = pick_by_pairs(margins, count)
        return [candidates[row].path for row in rows]
    return [candidate.path for candidate in pick_by_settings(candidates, count)]
