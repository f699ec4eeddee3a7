"""The configuration of a run: defaults < YAML file < flags, strictly checked."""

from orpo_dist.config.load import (
    build_config,
    check_settings,
    dump_config,
    load_config,
    read_yaml,
    require_config,
)
from orpo_dist.config.schema import ORPOConfig

__all__ = [
    "ORPOConfig",
    "build_config",
    "check_settings",
    "dump_config",
    "load_config",
    "read_yaml",
    "require_config",
]
