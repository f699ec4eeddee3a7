"""``orpo-dist data audit``: what it does, and where its results go."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from orpo_dist.audit.audit import audit
from orpo_dist.audit.clean import drop_list_path, write_clean
from orpo_dist.audit.page import audit_page
from orpo_dist.audit.rules import DROPPED, RULES
from orpo_dist.audit.terminal import format_audit
from orpo_dist.base.console import quieten_libraries
from orpo_dist.base.types import UserError
from orpo_dist.config import load_config
from orpo_dist.config.flags import config_values
from orpo_dist.data import limits_of


def run_audit(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    files = {"data_path": options.files} if options.files else {}
    config = load_config(options.config, {**config_values(options), **files})
    if not config.data_path:
        raise UserError("nothing to audit: pass FILE, or --config with a data_path")
    rules = _rules(options)
    outputs = _outputs(options, config.data_path + config.valid_data_path)
    found = audit(config, *_tokenizer(config))
    print(format_audit(found))
    if "json" in outputs:
        _write(outputs["json"], json.dumps(found.as_json(), indent=2) + "\n")
    if "html" in outputs:
        _write(outputs["html"], audit_page(found))
    if "clean" in outputs:
        clean = outputs["clean"]
        try:
            dropped = write_clean(found, config, clean, rules)
        except OSError as error:
            raise UserError(f"clean {clean}: cannot be written ({error.strerror})") from error
        kept = len(found.corpus.origins) - dropped
        print(f"\n{clean}: {kept} rows; {drop_list_path(clean)}: {dropped} dropped")
    return 0


def _rules(options: argparse.Namespace) -> list[str]:
    """The rules whose rows ``--clean`` leaves out."""
    if options.drop is None:
        return list(DROPPED)
    if options.clean is None:
        raise UserError("--drop says what --clean leaves out: pass --clean FILE too")
    for name in options.drop:
        if name not in RULES:
            raise UserError(f"--drop {name}: no such rule; the rules are {', '.join(RULES)}")
    return list(options.drop)


def _outputs(options: argparse.Namespace, inputs: list[str]) -> dict[str, Path]:
    """Where to write, checked before the work begins."""
    outputs = {
        name: Path(value)
        for name in ("json", "html", "clean")
        if (value := getattr(options, name)) is not None
    }
    taken = {Path(path).resolve() for path in inputs}
    for name, path in outputs.items():
        if not path.resolve().parent.is_dir():
            raise UserError(f"{name} {path}: its folder does not exist")
        if path.is_dir():
            raise UserError(f"{name} {path}: is a folder; name a file")
        if path.resolve() in taken:
            raise UserError(f"{name} {path}: is one of the files to read or write; choose another")
        taken.add(path.resolve())
    if "clean" in outputs and outputs["clean"].suffix != ".jsonl":
        raise UserError(f"clean {outputs['clean']}: must end in .jsonl")
    return outputs


def _tokenizer(config: Any) -> tuple[Any, ...]:
    """``(tokenizer, limits)`` of the config's model; nothing without one."""
    if config.model is None:
        return ()
    # Without a model an audit needs none of these libraries.
    from orpo_dist.models.model import load_model_config, load_tokenizer

    quieten_libraries()
    limits = limits_of(config, load_model_config(config.model, config))
    return load_tokenizer(config.model, config), limits


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
