"""Which files of a folder belong to a split: by a hub card, by names, by the folders inside."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from orpo_dist.base.types import UserError
from orpo_dist.data.files import KINDS, is_data_file

# What names a part of the data that is not for training.
OTHER_SPLITS = ("test", "valid", "val", "eval", "dev")
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")  # how the hub and datasets name the files of a split

logger = logging.getLogger("orpo_dist")


def folder_files(folder: Path, split: str) -> list[Path]:
    """The data files of a folder: those of the split; all for train if none is named after it.

    Files in folders inside count where the folder itself holds none, as in clones of hub data sets.
    What a hub card (README.md) says comes first. Raises ``UserError`` if there are none, or if
    several splits could be meant.
    """
    files = sorted(_data_files(folder, frozenset()))
    if not files:
        raise UserError(f"data folder {folder}: holds no {KINDS} file")
    taken = _from_card(folder, files, split)
    if taken is None:
        own = [file for file in files if file.parent == folder]
        taken = _from_names(folder, own or files, split)
    left_out = [file for file in files if file not in taken]
    if left_out:
        shown = ", ".join(str(file.relative_to(folder)) for file in left_out[:10])
        more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        logger.info("data folder %s: %s%s not part of split '%s'", folder, shown, more, split)
    return taken


def _is_data(path: Path) -> bool:
    """Hidden files are none, such as the ``._x`` that macOS leaves beside each ``x``."""
    return is_data_file(path.name) and path.name not in ABOUT and not path.name.startswith(".")


def _data_files(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder that it is in
        return
    for path in folder.iterdir():
        if path.name.startswith((".", "__MACOSX")):
            continue
        if path.is_dir():
            yield from _data_files(path, above | {here})
        elif _is_data(path):
            yield path


def _from_card(folder: Path, files: list[Path], split: str) -> list[Path] | None:
    """Files that the ``configs`` of a hub card name for the split; None if it names none at all."""
    configs = _configs(folder / "README.md")
    if len(configs) > 1:
        default = [c for c in configs if c.get("default") or c.get("config_name") == "default"]
        if not default:
            names = ", ".join(str(config.get("config_name")) for config in configs)
            logger.info("data folder %s: holds %s, all of them are read", folder, names)
        configs = default or configs
    parts: dict[str, list[str]] = {}
    for config in configs:
        for name, patterns in _patterns(config.get("data_files")):
            parts.setdefault(name, []).extend(patterns)
    if not parts:
        return None
    if split not in parts:
        raise UserError(
            f"data folder {folder}: has no split '{split}'; its README.md names "
            f"{', '.join(parts)} (set --train-split or --valid-split)"
        )
    named = [f for f in files if any(fnmatch(str(f.relative_to(folder)), p) for p in parts[split])]
    if not named:
        raise UserError(
            f"data folder {folder}: holds no file of split '{split}', which its README.md says are "
            f"{', '.join(parts[split])}"
        )
    return named


def _configs(card: Path) -> list[dict[str, Any]]:
    """The ``configs`` in the front matter of a hub card; empty if there is nothing of the kind."""
    try:
        text = card.read_text(encoding="utf-8")
        matter = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return []
    configs = matter.get("configs") if isinstance(matter, dict) else None
    return [c for c in configs if isinstance(c, dict)] if isinstance(configs, list) else []


def _patterns(data_files: Any) -> Iterator[tuple[str, list[str]]]:
    """``(split, patterns)`` of a config's files; one pattern alone is the training data."""
    if isinstance(data_files, str):
        yield "train", [data_files]
    for entry in data_files if isinstance(data_files, list) else []:
        if isinstance(entry, str):
            yield "train", [entry]
        elif isinstance(entry, dict) and "split" in entry and "path" in entry:
            path = entry["path"]
            yield str(entry["split"]), list(map(str, path if isinstance(path, list) else [path]))


def _from_names(folder: Path, files: list[Path], split: str) -> list[Path]:
    shards: dict[str, list[Path]] = {}
    for file in files:
        if found := SHARD.match(file.name):
            shards.setdefault(found[1], []).append(file)
    if split in shards:
        return shards[split]
    alike = [name for name in shards if name.startswith(split)]
    if len(alike) > 1:  # train_sft and train_prefs are other data, not parts of one split
        raise UserError(
            f"data folder {folder}: has no split '{split}' but {', '.join(alike)} (set "
            "--train-split or --valid-split)"
        )
    named = [file for file in files if _names(file.relative_to(folder), (split,))]
    if named:
        return named
    if split != "train":
        raise UserError(f"data folder {folder}: has no file named after the split '{split}'")
    return [f for f in files if not _names(f.relative_to(folder), OTHER_SPLITS)]


def _names(path: Path, splits: tuple[str, ...]) -> bool:
    """Whether the file, or if it is named after no split a folder around it, is named so."""
    known = ("train", *OTHER_SPLITS, *splits)
    for part in reversed(path.parts):
        if part.startswith(known):
            return part.startswith(splits)
    return False
