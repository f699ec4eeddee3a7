"""Sweep files: where they are found, and what in them is a mistake."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orpo_dist.base.types import UserError, noted, refuse
from orpo_dist.config import ORPOConfig, check_settings, read_yaml
from orpo_dist.sweeps.searched.config import SweepConfig
from orpo_dist.sweeps.searched.space import Space

FOLDER = Path(__file__).parents[1] / "presets"
PATHS = ("model", "data_path", "valid_data_path", "chat_template")


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
    source: str | Path | Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> SweepConfig:
    """The sweep in a file, of a shipped name, or in a mapping.

    base, settings: win over what its base and it itself hold.

    ``base`` may name a run's YAML instead of holding settings. Paths that exist here or else beside
    the sweep file become absolute: trials may run in other folders. Raises ``UserError``.
    """
    if isinstance(source, Mapping):
        return build_sweep({**source, **(settings or {})}, base or {}, Path(), "sweep")
    path = find_sweep(str(source))
    content = {**read_yaml(path), **(settings or {})}
    return build_sweep(content, base or {}, path.resolve().parent, f"sweep {path}")


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
        name: _beside(folder, value) if name in PATHS else value
        for name, value in {**base, **overrides}.items()
    }
    found: list[str] = []
    content["base"] = {}
    with noted(found):
        content["base"] = check_settings(local, "base")
    found += [_unknown(str(name)) for name in content if name not in SweepConfig.model_fields]
    if "space" in content:
        with noted(found):
            Space(content["space"])
    else:
        found.append("space is missing: say which settings to search")
    try:
        sweep = SweepConfig.model_validate({str(name): value for name, value in content.items()})
    except ValidationError as error:  # of its fields, else of how they go together
        found += [_sentence(problem) for problem in error.errors() if _is_news(problem, found)]
    refuse(found, where)
    return sweep


def _is_news(problem: Any, found: list[str]) -> bool:
    """Whether a problem that pydantic has found is not told yet, nor follows from one that is."""
    if problem["type"] == "extra_forbidden" or problem["loc"] == ("space",):
        return False
    return bool(problem["loc"]) or not found


def _beside(folder: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_beside(folder, item) for item in value]
    if isinstance(value, str) and value:
        for path in (Path(value), folder / value):
            if _exists(path):
                return str(path.resolve())
    return value


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a chat template itself, too long to be a name
        return False


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
