"""Configs from YAML files and flag values, and back to YAML; every mistake becomes one sentence."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from orpo_dist.base.types import UserError
from orpo_dist.config.checks import problems
from orpo_dist.config.schema import ORPOConfig


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file; ``UserError`` if it is missing, broken or not a mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: is not a UTF-8 text file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "broken"
        raise UserError(f"config {path}{where}: is not YAML ({problem})") from error
    except ValueError as error:  # a date like 2024-13-45
        raise UserError(f"config {path}: holds a value that cannot be read ({error})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"config {path}: must be a mapping of settings, not {type(values).__name__}"
        )
    return values


def build_config(values: Mapping[str, Any], where: str = "") -> ORPOConfig:
    """An ``ORPOConfig`` from plain values of any keys; ``UserError`` for mistakes.

    where: named at the start of the sentence, e.g. the file the values came from.
    """
    try:
        return ORPOConfig(**{str(name): value for name, value in values.items()})
    except UserError as error:
        raise UserError(f"{where}: " * bool(where) + str(error)) from None


def require_config(given: Any, name: str = "config") -> None:
    """``UserError`` where something else stands for an ``ORPOConfig``. name: of the argument."""
    if not isinstance(given, ORPOConfig):
        raise UserError(
            f"{name} must be an ORPOConfig, not {type(given).__name__}: a mapping becomes one by "
            "ORPOConfig(**settings), and what TrainingArguments alone have goes into its "
            "trainer_args={...}"
        )


@functools.cache  # made where it is needed: --help is quicker without it
def _apart() -> type[ORPOConfig]:
    """The same settings, each checked on its own."""

    class Apart(ORPOConfig):
        @model_validator(mode="after")
        def _consistent(self) -> Apart:
            return self

    return Apart


def check_settings(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Some settings of a config to come, each checked and converted, but not against each other.

    Raises ``UserError`` for unknown names and for values that their settings never take.
    """
    try:
        checked = _apart()(**{str(name): value for name, value in values.items()})
    except UserError as error:
        raise UserError(f"{where}: " * bool(where) + str(error)) from None
    return {name: getattr(checked, name) for name in values}


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> ORPOConfig:
    """defaults < the YAML file at ``path`` < ``overrides``; mistakes in both are told at once."""
    values = {str(name): value for name, value in (read_yaml(path) if path else {}).items()}
    both = {**values, **(overrides or {})}
    if found := problems(ORPOConfig, values):  # names the file when the file is at fault
        more = [said for said in problems(ORPOConfig, both) if said not in found]
        raise UserError("; ".join([f"config {path}: {'; '.join(found)}", *more]))
    return build_config(both)


def dump_config(config: ORPOConfig) -> str:
    """The config as YAML that ``load_config`` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
