"""Our names of schedulers and searchers -> Ray Tune's objects."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.sweeps.searched.config import POPULATION, SweepConfig
from orpo_dist.sweeps.searched.space import Choice, Range

TIME = "percent"  # of a trial's own steps: rungs mean the same for long trials and short ones
HALVING = ("hyperband", "bohb")
BEYOND = 101  # so that no scheduler ends a trial at its last evaluation, before it has saved

NEEDS = {
    "pb2": {"sklearn": "scikit-learn"},
    "bohb": {"ConfigSpace": "ConfigSpace", "hpbandster": "hpbandster"},
    "optuna": {"optuna": "optuna"},
}


def require_installed(sweep: SweepConfig) -> None:
    """``UserError`` where a scheduler or searcher needs a package that is not there."""
    for name in (sweep.scheduler_name, sweep.searcher_name):
        for module, package in NEEDS.get(name, {}).items():
            if importlib.util.find_spec(module) is None:
                raise UserError(f"{name} needs {package}: pip install {package}")


@dataclass(frozen=True)
class Tuning:
    """What Tune needs of a sweep, of its own kinds. space: what it draws trials from."""

    space: dict[str, Any]
    scheduler: Any
    searcher: Any


def tuning_of(sweep: SweepConfig) -> Tuning:
    """``UserError`` where Tune would not take the scheduler, the searcher or their options."""
    require_installed(sweep)
    return Tuning(param_space(sweep), scheduler(sweep), searcher(sweep))


def param_space(sweep: SweepConfig) -> dict[str, Any]:
    """What Tune draws trials from: all points known before, or domains for a searcher."""
    from ray import tune

    if not sweep.proposes:
        return {"settings": tune.grid_search([dict(point) for point in sweep.points])}
    return {"settings": {p.name: _domain(p.domain) for p in sweep.search_space}}


def _domain(domain: Choice | Range) -> Any:
    from ray import tune

    if isinstance(domain, Choice):
        return tune.choice(list(domain.values))
    if domain.log:
        return tune.loguniform(domain.low, domain.high)
    if domain.whole and domain.step == 1:
        return tune.randint(int(domain.low), int(domain.high) + 1)
    if domain.step is not None:
        return tune.quniform(domain.low, domain.high, domain.step)
    return tune.uniform(domain.low, domain.high)


def scheduler(sweep: SweepConfig) -> Any:
    """Tune's scheduler, None for none; ``UserError`` for an option that it does not have."""
    from ray.tune import schedulers

    options = {key: value for key, value in sweep.scheduler.items() if key != "name"}
    name = sweep.scheduler_name
    if name == "none":
        return None if not options else _refuse(options, "none", [])
    if name in POPULATION:
        options |= _population(sweep)
    elif name in ("asha", *HALVING):
        options = {"max_t": BEYOND, **options}
    if name in HALVING:  # else their best trials end at the last rung, short of their last step
        options = {"stop_last_trials": False, **options}
    made = {
        "asha": schedulers.ASHAScheduler,
        "median": schedulers.MedianStoppingRule,
        "hyperband": schedulers.HyperBandScheduler,
        "bohb": schedulers.HyperBandForBOHB,
        "pbt": schedulers.PopulationBasedTraining,
        "pb2": _pb2,
    }[name]
    return _make(made, {"time_attr": TIME, **options}, f"scheduler {name}")


def _pb2(**options: Any) -> Any:
    from ray.tune.schedulers.pb2 import PB2

    return PB2(**options)


def _population(sweep: SweepConfig) -> dict[str, Any]:
    """What a population may change while it trains, kept within the space."""
    space = sweep.search_space
    if sweep.scheduler_name == "pb2":
        for parameter in space:
            if isinstance(parameter.domain, Choice):
                raise UserError(f"space.{parameter.name}: pb2 searches ranges only; use uniform")
        bounds = {p.name: [p.domain.low, p.domain.high] for p in space}  # type: ignore[union-attr]
        return {"hyperparam_bounds": {"settings": bounds}}

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        settings = config["settings"]
        for parameter in space:
            settings[parameter.name] = parameter.domain.settle(settings[parameter.name])
        return config

    mutations = {
        p.name: list(p.domain.values) if isinstance(p.domain, Choice) else _domain(p.domain)
        for p in space
    }
    return {"hyperparam_mutations": {"settings": mutations}, "custom_explore_fn": explore}


def searcher(sweep: SweepConfig) -> Any:
    """Tune's search algorithm, None where all points are known."""
    options = {key: value for key, value in sweep.searcher.items() if key != "name"}
    if not sweep.proposes:
        return None if not options else _refuse(options, sweep.searcher_name, [])
    metrics, modes = list(sweep.metrics), list(sweep.metrics.values())
    several = len(metrics) > 1
    options |= {
        "metric": metrics if several else metrics[0],
        "mode": modes if several else modes[0],
    }
    if sweep.searcher_name == "bohb":
        from ray.tune.search.bohb import TuneBOHB

        return _make(TuneBOHB, {"seed": sweep.seed, **options}, "searcher bohb")
    import optuna
    from ray.tune.search import Repeater
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = _make(OptunaSearch, {"seed": sweep.seed, **options}, "searcher optuna")
    return made if sweep.repeats == 1 else Repeater(made, repeat=sweep.repeats)


def _make(kind: Any, options: dict[str, Any], what: str) -> Any:
    """The object, with complaints about options in one sentence."""
    known = list(inspect.signature(kind).parameters)
    if "options" not in known:
        _refuse({name: v for name, v in options.items() if name not in known}, what, known)
    try:
        return kind(**options)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())[:200]}") from error


def _refuse(unknown: dict[str, Any], what: str, known: list[str]) -> None:
    for name in unknown:
        raise UserError(
            f"{what}: has no option '{name}'" + f"; it has {', '.join(known)}" * bool(known)
        )
