"""The manifest of a checkpoint: what was written, by which a whole one is told from any other.

It is written last, before the folder gets its name, and says of every file its size and checksum.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
FORMAT = 1
CHUNK = 1 << 24  # bytes
THREADS = 4  # hashing and reading both let go of the GIL


def files_in(checkpoint: Path) -> list[str]:
    """All files below a checkpoint but its manifest, by their relative paths, sorted."""
    names = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if name.as_posix() != MANIFEST)


def fingerprints(
    checkpoint: Path, names: Iterable[str], sync: bool = False
) -> dict[str, dict[str, Any]]:
    """Size in bytes and checksum of every named file. sync: also see that they are on the disk."""

    def one(name: str) -> dict[str, Any]:
        checksum, size = xxhash.xxh3_128(), 0
        with (checkpoint / name).open("rb") as file:
            if sync:
                os.fsync(file.fileno())
            while chunk := file.read(CHUNK):
                checksum.update(chunk)
                size += len(chunk)
        return {"size": size, "xxh3_128": checksum.hexdigest()}

    names = list(names)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def seal(checkpoint: Path, files: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the manifest, and see that it and the folders are on the disk.

    files: ``fingerprints`` of all there are. facts: what a resume has to know (JSON).
    """
    content = {"format": FORMAT, **facts, "files": dict(sorted(files.items()))}
    with (checkpoint / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({**content, "checksum": _checksum(content)}, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    for folder in (*(path for path in checkpoint.rglob("*") if path.is_dir()), checkpoint):
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """See that the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_128(text.encode()).hexdigest()


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What the manifest says beside its files; empty without one."""
    facts = _read(checkpoint / MANIFEST) or {}
    return {name: value for name, value in facts.items() if name not in ("files", "checksum")}


def damage(checkpoint: Path, thorough: bool = True) -> str | None:
    """What is wrong with a checkpoint, for the end of a sentence; None if it is whole.

    thorough: read every file and compare its checksum, not only its size.
    """
    if not checkpoint.is_dir():
        return "is not there"
    if not (checkpoint / MANIFEST).exists():
        return f"its {MANIFEST} is missing"
    manifest = _read(checkpoint / MANIFEST)
    if manifest is None:
        return f"its {MANIFEST} is no JSON"
    if manifest.pop("checksum", None) != _checksum(manifest):
        return f"its {MANIFEST} was changed"
    files: dict[str, dict[str, Any]] = manifest["files"]
    wrong = _wrong_size(checkpoint, files)
    return _wrong_content(checkpoint, files) if thorough and wrong is None else wrong


def _wrong_size(checkpoint: Path, files: dict[str, dict[str, Any]]) -> str | None:
    for name, wanted in files.items():
        try:
            size = (checkpoint / name).stat().st_size
        except OSError:
            return f"its {name} is missing"
        if size != wanted["size"]:
            return f"its {name} has {size} of {wanted['size']} bytes"
    return None


def _wrong_content(checkpoint: Path, files: dict[str, dict[str, Any]]) -> str | None:
    try:
        found = fingerprints(checkpoint, files)
    except OSError as error:
        return f"it cannot be read ({error.strerror}: {error.filename})"
    changed = (name for name, wanted in files.items() if found[name] != wanted)
    return next((f"its {name} was changed: wrong checksum" for name in changed), None)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
