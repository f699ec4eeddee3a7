"""``SweepConfig``: what a sweep file holds, checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from orpo_dist.base.types import UserError, noted, refuse
from orpo_dist.config import ORPOConfig, build_config
from orpo_dist.launch import presets
from orpo_dist.sweeps.searched.metrics import METRICS, find_metric, refuse_incomparable
from orpo_dist.sweeps.searched.space import ENGINE, OWNED, Settings, Space
from orpo_dist.upstream.ray import repeat_of

SCHEDULERS = ("none", "asha", "median", "hyperband", "pbt", "pb2", "bohb")
SEARCHERS = ("grid", "random", "optuna", "bohb")
POPULATION = ("pbt", "pb2")  # change the settings of a trial while it runs
CHANGEABLE = ("lr", "weight_decay", "orpo_alpha", "max_grad_norm")  # from a checkpoint on
# Settings whose values are names that other libraries have, or fit the processes or not: known
# where a run starts.
NAMES = (
    "optimizer", "scheduler", "log", "metric_for_best_model", "trainer_args", "sequence_parallel",
)  # fmt: skip
PAUSING = (*POPULATION, "hyperband", "bohb")  # stop trials and go on with them later
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class SweepConfig(BaseModel):
    """All settings of one sweep. Immutable; mistakes raise ``UserError`` in ``load_sweep``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    # fmt: off
    base: dict[str, Any] = Field({}, description="settings of every trial, as in a run's YAML")
    space: dict[str, Any] = Field(description="settings to search: grid, choice, uniform, loguniform, quniform, randint; when: conditions")
    metric: list[str] = Field(["accuracy"], description="evaluation metric to rank by; several with searcher optuna", min_length=1)
    mode: list[Literal["min", "max"]] = Field([], description="min or max per metric; default: what is better")
    num_samples: int = Field(1, description="draws of what is random, for each point of the grid", ge=1)
    repeats: int = Field(1, description="trials per point with seeds of their own, for intervals", ge=1)
    seed: int = Field(0, description="seed of the draws", ge=0)
    scheduler: dict[str, Any] = Field({"name": "none"}, description="who stops trials early: none, asha, median, hyperband, pbt, pb2, bohb; options beside name")
    searcher: dict[str, Any] = Field({"name": "random"}, description="who proposes points: random (and grid), optuna, bohb; options beside name")
    engine: str = Field("", description="preset of a trial: single, ddp, zero1, zero2, zero3, fsdp2; default: ddp, single for one worker")
    workers_per_trial: int = Field(1, description="processes that train one trial", ge=1)
    resources_per_worker: dict[str, float] = Field({}, description="what Ray sets aside per worker; default: a GPU where there are any, and a CPU")
    placement: Literal["PACK", "SPREAD", "STRICT_PACK"] = Field("PACK", description="workers of a trial on few machines, on many, or on one only")
    max_concurrent_trials: int | None = Field(None, description="trials at once; default: what fits", ge=1)
    max_failures: int = Field(2, description="restarts of a trial whose worker or machine died", ge=0)
    time_budget: float | None = Field(None, description="stop the sweep after this long: seconds, or 90m, 12h, 2d", gt=0)
    keep_models: Literal["all"] | int = Field("all", description="models to keep, best first; the others' weights are deleted as the sweep goes")
    # fmt: on

    @field_validator("metric", "mode", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("scheduler", "searcher", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if value is None or value is False:  # YAML's null and no
            return {"name": "none"}
        return {"name": value} if isinstance(value, str) else value

    @field_validator("time_budget", mode="before")
    @classmethod
    def _with_unit(cls, value: Any) -> Any:
        found = re.fullmatch(r"([\d.]+)([smhd])", value) if isinstance(value, str) else None
        return float(found[1]) * UNITS[found[2]] if found else value

    @field_validator("keep_models")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value != "all" and value < 1:
            raise ValueError("must be all, or a number from 1")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        try:
            _check(self)
        except UserError as error:
            raise ValueError(str(error)) from error
        return self

    @cached_property
    def search_space(self) -> Space:
        return Space(self.space)

    @property
    def metrics(self) -> dict[str, str]:
        """Metric names and what is better, ``min`` or ``max``; the first one ranks."""
        names = [find_metric(name) for name in self.metric]
        modes: list[str] = [*self.mode] or [METRICS[name].mode for name in names]
        return dict(zip(names, modes, strict=True))

    @property
    def scheduler_name(self) -> str:
        return str(self.scheduler["name"])

    @property
    def searcher_name(self) -> str:
        return str(self.searcher["name"])

    @property
    def proposes(self) -> bool:
        """Whether points come from a searcher that learns, instead of being known before."""
        return self.searcher_name in ("optuna", "bohb")

    @property
    def project_name(self) -> str:
        return str(self.base.get("project_name", ORPOConfig.model_fields["project_name"].default))

    @cached_property
    def points(self) -> tuple[Settings, ...]:
        """Every trial's settings, seeds included, in the order of the trials; for ``proposes``,
        a sample of what may be proposed."""
        samples = 64 if self.proposes else self.num_samples
        population = self.scheduler_name in POPULATION  # its members may begin alike
        points = self.search_space.points(self.base, samples, self.seed, unique=not population)
        if self.repeats == 1:
            return tuple(points)
        return tuple({**point, "seed": seed} for point in points for seed in self.seeds)

    @cached_property
    def number_of_trials(self) -> int:
        return self.num_samples * self.repeats if self.proposes else len(self.points)

    @property
    def seeds(self) -> list[int]:
        first = int(self.base.get("seed", ORPOConfig.model_fields["seed"].default))
        return [first + repeat for repeat in range(self.repeats)]

    def settings_of(self, config: Mapping[str, Any]) -> Settings:
        """The settings in what Ray Tune hands a trial as its config."""
        drawn = config["settings"]
        found = self.search_space.settle(drawn, self.base)
        if "seed" in drawn and "seed" not in found:
            found["seed"] = drawn["seed"]
        if (repeat := repeat_of(config)) is not None:
            found["seed"] = self.seeds[repeat]
        return found

    def engine_of(self, settings: Mapping[str, Any]) -> str:
        """The preset that a trial with these settings runs on."""
        default = self.engine or ("ddp" if self.workers_per_trial > 1 else "single")
        return str(settings.get(ENGINE, default))

    def run_config(self, settings: Mapping[str, Any], folder: str | Path) -> ORPOConfig:
        """The config of a trial's run, which saves whenever it evaluates, so as to go on there."""
        base = {name: value for name, value in self.base.items() if name not in OWNED}
        searched = {name: value for name, value in settings.items() if name != ENGINE}
        for name in ("trainer_args", "trust_remote_code"):
            if name in self.base:
                base[name] = self.base[name]
        config = build_config({**base, **searched})
        saves = config.eval_strategy or "epoch"
        return config.replace(
            project_name=str(folder),
            resume_from_checkpoint="auto",
            eval_strategy=saves,
            save_strategy=saves,
            save_steps=config.eval_steps,
        )


def _check(sweep: SweepConfig) -> None:
    """``UserError`` where settings do not hold together or name what does not exist."""
    found: list[str] = []
    if sweep.mode and len(sweep.mode) != len(sweep.metric):
        found.append(f"mode: {len(sweep.mode)} given for {len(sweep.metric)} metrics")
    for name in sweep.metric:
        with noted(found):
            refuse_incomparable(find_metric(name), sweep.search_space.names)
    for kind, names in (("scheduler", SCHEDULERS), ("searcher", SEARCHERS)):
        with noted(found):
            _check_name(kind, getattr(sweep, kind).get("name"), names)
    if sweep.engine:
        with noted(found):
            presets.find(sweep.engine)
    if sweep.base.get("eval_strategy") == "no":
        found.append("base.eval_strategy no: trials are compared by their evaluations")
    refuse(found)  # what follows looks at all of these together
    refuse([*_disagreements(sweep, sweep.search_space), *_bad_engines(sweep)])
    for point in sweep.points:
        config = sweep.run_config(point, "trial")
        if config.keeps_best and sweep.scheduler_name in POPULATION:
            raise UserError(
                f"scheduler {sweep.scheduler_name} passes weights between trials, so that "
                "early_stopping_patience and load_best_model_at_end have no meaning"
            )


def _bad_engines(sweep: SweepConfig) -> Iterator[str]:
    for settings in ({}, *sweep.search_space.extremes()):
        engine = presets.find(sweep.engine_of(settings)).engine
        if engine.name == "single" and sweep.workers_per_trial > 1:
            yield "engine single is one process: use ddp, fsdp2 or zero1 to zero3"
        if engine.offload == "nvme":
            yield f"engine {engine}: sweeps have no place for its NVMe folder yet"


def _disagreements(sweep: SweepConfig, space: Space) -> Iterator[str]:
    """Sentences on settings of the sweep that cannot hold together."""
    scheduler, searcher = sweep.scheduler_name, sweep.searcher_name
    if "seed" in space and sweep.repeats > 1:
        yield "repeats and space.seed both set seeds: choose one"
    if (scheduler == "bohb") != (searcher == "bohb"):
        yield "scheduler bohb and searcher bohb belong together: set both"
    if sweep.proposes and space.walks_grid:
        yield f"searcher {searcher} proposes points and walks no grid: use choice"
    if len(sweep.metric) > 1 and (searcher != "optuna" or scheduler != "none"):
        yield "several metrics need searcher optuna and no scheduler"
    if len(sweep.metric) > 1 and sweep.repeats > 1:
        yield "several metrics cannot be averaged over repeats: set repeats to 1"
    if sweep.proposes and sweep.repeats > 1 and scheduler != "none":
        yield f"repeats with searcher {searcher} need scheduler none"
    if scheduler in POPULATION and (sweep.proposes or any(p.when for p in space)):
        yield f"scheduler {scheduler} needs searcher random and a space without when"
    for name in space.names if scheduler in POPULATION else ():
        if name not in CHANGEABLE:
            yield (
                f"space.{name}: cannot change while a trial trains, as scheduler {scheduler} "
                f"would have it; it changes {', '.join(CHANGEABLE)}"
            )
    if not space.names and sweep.repeats == 1:
        yield "space: is empty, and repeats is 1: there is nothing to compare"


def _check_name(kind: str, name: Any, names: tuple[str, ...]) -> None:
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        guess = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(names)}"
        raise UserError(f"{kind} '{name}': {guess}")


def asks_libraries(sweep: SweepConfig) -> bool:
    """Whether some of its values are names that only other libraries know."""
    own = sweep.base.get("log") in ("none", "tensorboard")
    asked = set(sweep.base) - ({"log"} if own else set()) | set(sweep.space)
    return not asked.isdisjoint(NAMES)
