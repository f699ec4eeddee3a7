"""``orpo-dist data audit``: its flags, and where its results go."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from orpo_dist.base.types import UserError


def add_data_verbs(parser: argparse.ArgumentParser) -> None:
    """The verbs of ``orpo-dist data``."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    text = "find what is wrong with preference data, and what each length limit would cost"
    add_audit_flags(verbs.add_parser("audit", help=text, description=text, allow_abbrev=False))


def add_audit_flags(parser: argparse.ArgumentParser) -> None:
    from orpo_dist.config.flags import add_config_flags

    parser.add_argument("files", nargs="*", metavar="FILE", help="files, folders or hub ids")
    parser.add_argument("--config", metavar="FILE", help="take model and data settings from a run")
    parser.add_argument("--json", metavar="FILE", help="write every finding, row and figure")
    parser.add_argument("--html", metavar="FILE", help="write one page with plots")
    parser.add_argument(
        "--clean", metavar="FILE", help="write the rows that stay (.jsonl), and .dropped.csv"
    )
    parser.add_argument(
        "--drop", nargs="*", metavar="RULE", help="what --clean drops, by the names of the rules"
    )
    add_config_flags(
        parser,
        groups=("data",),
        also=("model", "model_revision", "trust_remote_code"),
        without=("data_path", "data_weights", "data_temperature", "strict_data", "overlong"),
    )


def run_audit(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    from orpo_dist.config import load_config
    from orpo_dist.config.flags import config_values

    files = {"data_path": options.files} if options.files else {}
    config = load_config(options.config, {**config_values(options), **files})
    if not config.data_path:
        raise UserError("nothing to audit: pass FILE, or --config with a data_path")
    rules = _rules(options)
    outputs = _outputs(options, config.data_path + config.valid_data_path)
    from orpo_dist.audit.audit import audit
    from orpo_dist.audit.terminal import format_audit

    found = audit(config, *_tokenizer(config))
    print(format_audit(found))
    if "json" in outputs:
        _write(outputs["json"], json.dumps(found.as_json(), indent=2) + "\n")
    if "html" in outputs:
        from orpo_dist.audit.page import audit_page

        _write(outputs["html"], audit_page(found))
    if "clean" in outputs:
        from orpo_dist.audit.clean import drop_list_path, write_clean

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
    from orpo_dist.audit.rules import DROPPED, RULES

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
    from orpo_dist.base.console import quieten_libraries
    from orpo_dist.data import limits_of
    from orpo_dist.models.model import load_model_config, load_tokenizer

    quieten_libraries()
    limits = limits_of(config, load_model_config(config.model, config))
    return load_tokenizer(config.model, config), limits


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
