"""Flags that a command does not know, answered in one sentence with all other mistakes."""

from __future__ import annotations

import argparse

from orpo_dist.base.types import noted, refuse
from orpo_dist.config.flags import config_of, config_values
from orpo_dist.config.load import check_settings
from orpo_dist.config.names import explain_unknown
from orpo_dist.config.schema import ORPOConfig


def refuse_unknown(unknown: list[str], options: argparse.Namespace) -> None:
    """One ``UserError`` for all unknown words and for wrong settings beside them.

    unknown: what the parser has left over, at least one word.
    """
    renamed: dict[str, str] = vars(options).get("renamed", {})
    words = [word.partition("=")[0] for word in unknown]
    flags = [word for word in words if word.startswith("--")]
    found = [f"unexpected argument '{words[0]}'"] if words[0] not in flags else []
    found += [_explain_flag(flag, renamed) for flag in dict.fromkeys(flags)]
    with noted(found):
        if "config" in options:
            config_of(options)
        else:  # these settings are laid over others
            check_settings(config_values(options))
    refuse(found)


def _explain_flag(word: str, renamed: dict[str, str]) -> str:
    if word in renamed:
        return f"unknown flag '{word}': it is now called {renamed[word]}"
    name = word[2:].replace("-", "_")
    if name in ORPOConfig.model_fields:
        flag = _flag(name)
        why = f"did you mean {flag}?" if flag != word else "this command does not take it"
        return f"unknown flag '{word}': {why}"
    return explain_unknown(name, ORPOConfig.model_fields, "flag", _flag)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
