"""Command-line flags made from the config's fields: same names in kebab-case, same help text."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, get_origin

import yaml
from pydantic.fields import FieldInfo

from orpo_dist.base.types import UserError
from orpo_dist.config.load import load_config
from orpo_dist.config.schema import ORPOConfig, leaves

HEADINGS = {
    "run": "run",
    "data": "data",
    "curriculum": "order of the data",
    "objective": "objective",
    "optimisation": "optimisation",
    "memory": "memory and precision",
    "adapter": "adapter",
    "schedule": "evaluation, checkpoints and logs",
}


def add_config_flags(
    parser: argparse.ArgumentParser,
    groups: Iterable[str] = tuple(HEADINGS),
    also: Iterable[str] = (),
    without: Iterable[str] = (),
) -> None:
    """One flag per config field of ``groups`` and ``also``, but none for those in ``without``.

    Flags that are not given are left out of the namespace, so that the file and defaults count.
    """
    headings = {group: parser.add_argument_group(HEADINGS[group]) for group in groups}
    others = parser.add_argument_group("more") if also else None
    for name, field in ORPOConfig.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        heading = headings.get(str(extra["group"])) or (others if name in also else None)
        if heading is not None and name not in without:
            _add_flag(heading, name, field)


def _add_flag(heading: Any, name: str, field: FieldInfo) -> None:
    flag = "--" + name.replace("_", "-")
    accepted = leaves(field.annotation)
    options: dict[str, Any] = {"dest": f"config.{name}", "default": argparse.SUPPRESS}
    choices = [leaf for leaf in accepted if isinstance(leaf, str)]
    shown = "" if field.default in (None, [], {}) else f" (default: {_show(field.default)})"
    options["help"] = f"{field.description}{shown}".replace("%", "%%")
    if bool in accepted:
        options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        heading.add_argument(flag, **options)
        no_flag = "--no-" + name.replace("_", "-")
        heading.add_argument(
            no_flag, dest=options["dest"], action="store_const", const="false",
            default=argparse.SUPPRESS, help=argparse.SUPPRESS,
        )  # fmt: skip
        return
    if (get_origin(field.annotation) is list or list in accepted) and dict not in accepted:
        options |= {"nargs": "+"}
    choices += ["NUMBER"] if choices and int in accepted else []
    options["metavar"] = "|".join(sorted(choices)) or "VALUE"
    heading.add_argument(flag, **options)


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def config_values(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags, by field name, still as text."""
    values = {}
    for key, value in vars(options).items():
        prefix, _, name = key.partition(".")
        if prefix == "config" and name:
            values[name] = _from_text(name, value)
    return values


def config_of(options: argparse.Namespace) -> ORPOConfig:
    """The config of ``--config`` and the flags, which win; ``UserError`` for mistakes."""
    return load_config(options.config, config_values(options))


def _from_text(name: str, value: Any) -> Any:
    """``none`` unsets what may be unset; what holds mappings is written in YAML or JSON."""
    accepted = leaves(ORPOConfig.model_fields[name].annotation)
    if value in ("none", "null") and type(None) in accepted and not accepted & {"none", str}:
        return None
    if dict in accepted:
        try:
            return yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            what = "list of mappings" if list in accepted else "mapping"
            raise UserError(f"{name} {value!r}: is not a YAML or JSON {what}") from error
    return value
