"""``SweepConfig``: what a sweep file holds, checked; and where sweep files are found."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from orpo_dist.config import ORPOConfig, build_config, check_settings, read_yaml
from orpo_dist.launch import presets
from orpo_dist.sweeps.metrics import METRICS, find_metric, refuse_incomparable
from orpo_dist.sweeps.space import ENGINE, OWNED, Settings, Space
from orpo_dist.types import UserError

FOLDER = Path(__file__).parent / "presets"
SCHEDULERS = ("none", "asha", "median", "hyperband", "pbt", "pb2", "bohb")
SEARCHERS = ("grid", "random", "optuna", "bohb")
POPULATION = ("pbt", "pb2")  # change the settings of a trial while it runs
PAUSING = (*POPULATION, "hyperband", "bohb")  # stop trials and go on with them later
PATHS = ("model", "data_path", "valid_data_path", "chat_template")
REPEAT = "__trial_index__"  # of Ray's Repeater: which of the trials with these settings
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class SweepConfig(BaseModel):
    """All settings of one sweep. Immutable; mistakes raise ``UserError`` in ``load_sweep``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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

    def points(self) -> list[Settings]:
        """Every trial's settings, seeds included, in the order of the trials; for ``proposes``,
        a sample of what may be proposed."""
        samples = 64 if self.proposes else self.num_samples
        points = self.search_space.points(self.base, samples, self.seed)
        if self.repeats == 1:
            return points
        return [{**point, "seed": seed} for point in points for seed in self.seeds]

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
        if REPEAT in config:
            found["seed"] = self.seeds[config[REPEAT]]
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
    check_settings(sweep.base, "base")
    space, metrics = sweep.search_space, sweep.metrics
    if sweep.mode and len(sweep.mode) != len(sweep.metric):
        raise UserError(f"mode: {len(sweep.mode)} given for {len(sweep.metric)} metrics")
    for name in metrics:
        refuse_incomparable(name, space.names)
    for kind, names in (("scheduler", SCHEDULERS), ("searcher", SEARCHERS)):
        _check_name(kind, getattr(sweep, kind).get("name"), names)
    _check_together(sweep, space)
    if sweep.engine:
        presets.find(sweep.engine)
    for settings in ({}, *space.extremes()):
        engine = presets.find(sweep.engine_of(settings)).engine
        if engine.name == "single" and sweep.workers_per_trial > 1:
            raise UserError("engine single is one process: use ddp, fsdp2 or zero1 to zero3")
        if engine.offload == "nvme":
            raise UserError(f"engine {engine}: sweeps have no place for its NVMe folder yet")
    if sweep.base.get("eval_strategy") == "no":
        raise UserError("base.eval_strategy no: trials are compared by their evaluations")
    for point in sweep.points():
        sweep.run_config(point, "trial")


def _check_together(sweep: SweepConfig, space: Space) -> None:
    scheduler, searcher = sweep.scheduler_name, sweep.searcher_name
    if "seed" in space and sweep.repeats > 1:
        raise UserError("repeats and space.seed both set seeds: choose one")
    if (scheduler == "bohb") != (searcher == "bohb"):
        raise UserError("scheduler bohb and searcher bohb belong together: set both")
    if sweep.proposes and space.walks_grid:
        raise UserError(f"searcher {searcher} proposes points and walks no grid: use choice")
    if len(sweep.metric) > 1 and (searcher != "optuna" or scheduler != "none"):
        raise UserError("several metrics need searcher optuna and no scheduler")
    if sweep.proposes and sweep.repeats > 1 and scheduler != "none":
        raise UserError(f"repeats with searcher {searcher} need scheduler none")
    if scheduler in POPULATION and (sweep.proposes or any(p.when for p in space)):
        raise UserError(f"scheduler {scheduler} needs searcher random and a space without when")
    if not space.names and sweep.repeats == 1:
        raise UserError("space: is empty, and repeats is 1: there is nothing to compare")


def _check_name(kind: str, name: Any, names: tuple[str, ...]) -> None:
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        guess = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(names)}"
        raise UserError(f"{kind} '{name}': {guess}")


def shipped() -> list[str]:
    """The sweeps that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_sweep(name: str) -> Path:
    """The file of that path, else the shipped sweep of that name; ``UserError`` for neither."""
    if Path(name).is_file():
        return Path(name)
    if name in shipped():
        return FOLDER / f"{name}.yaml"
    close = difflib.get_close_matches(name, shipped(), n=1)
    guess = f"did you mean {close[0]}?" if close else f"shipped are {', '.join(shipped())}"
    raise UserError(f"sweep '{name}': no such file; {guess}")


def load_sweep(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> SweepConfig:
    """The sweep in a file, of a shipped name, or in a mapping. overrides: settings of its base.

    ``base`` may name a run's YAML instead of holding settings. Paths that exist beside the sweep
    file are those files. Raises ``UserError``.
    """
    if isinstance(source, Mapping):
        return build_sweep(source, overrides or {}, Path(), "sweep")
    path = find_sweep(str(source))
    return build_sweep(read_yaml(path), overrides or {}, path.resolve().parent, f"sweep {path}")


def build_sweep(
    content: Mapping[str, Any], overrides: Mapping[str, Any], folder: Path, where: str
) -> SweepConfig:
    """As ``load_sweep``, from what a file holds; where: begins every complaint."""
    content = dict(content)
    base = content.get("base") or {}
    if isinstance(base, str):
        base = read_yaml(folder / base if (folder / base).is_file() else base)
    if not isinstance(base, dict):
        raise UserError(f"{where}: base: must be a mapping of settings or a file")
    local = {
        name: _beside(folder, value) if name in PATHS else value for name, value in base.items()
    }
    content["base"] = {**local, **overrides}
    for name in content:
        if name not in SweepConfig.model_fields:
            raise UserError(f"{where}: {_unknown(str(name))}")
    if "space" not in content:
        raise UserError(f"{where}: space is missing: say which settings to search")
    try:
        return SweepConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(error.errors()[0])}") from error


def _beside(folder: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_beside(folder, item) for item in value]
    if isinstance(value, str) and value and not Path(value).exists() and (folder / value).exists():
        return str((folder / value).resolve())
    return value


def _unknown(name: str) -> str:
    known = list(SweepConfig.model_fields)
    if name in ORPOConfig.model_fields:
        return f"'{name}' is a setting of the runs: put it under base, or under space to search it"
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown setting '{name}': " + (
        f"did you mean {close[0]}?" if close else f"a sweep has {', '.join(known)}"
    )


def _sentence(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"][:1])
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return str(message)
    return f"{name}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"


def dump_sweep(sweep: SweepConfig) -> str:
    """The sweep as YAML that ``load_sweep`` reads back to an equal one."""
    return yaml.safe_dump(sweep.model_dump(), sort_keys=False, allow_unicode=True)
