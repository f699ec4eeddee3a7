"""What to do with many trained models: answer together, judge together, become one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_dist.ensembles.ensemble import Ensemble, load_ensemble
    from orpo_dist.ensembles.soups import make_soup

# Loaded on first use: the flags of the command line must not load torch.
_HOMES = {"Ensemble": "ensemble", "load_ensemble": "ensemble", "make_soup": "soups"}

__all__ = ["Ensemble", "load_ensemble", "make_soup"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"orpo_dist.ensembles.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'orpo_dist.ensembles' has no attribute '{name}'")
