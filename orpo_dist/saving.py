"""Saving a checkpoint so that it is whole or not there: beside its place, sealed, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from orpo_dist.lineage import SAVING, checkpoints, put_in_place
from orpo_dist.manifest import files_in, fingerprints, seal
from orpo_dist.runtime import Runtime


def save_whole(
    folder: Path,
    name: str,
    write: Callable[[Path], None],
    facts: Callable[[], dict[str, Any]],
    here: Runtime,
) -> None:
    """Let every rank ``write`` into the folder it is given; rank 0 makes it checkpoint ``name``.

    Wherever it is cut off, ``folder`` holds what it held before.
    facts: asked on rank 0 for what the manifest says.
    """
    scratch = folder / SAVING
    here.on_main(partial(_clear, scratch))
    write(scratch)
    checkpoint = scratch / name
    here.wait()  # all have written
    files = _fingerprints(checkpoint, here)
    here.on_main(partial(_finish, checkpoint, folder, files, facts))


def _clear(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)


def _fingerprints(checkpoint: Path, here: Runtime) -> dict[str, dict[str, Any]]:
    """Of all files, each read by one rank; a file system may show a rank those of others late."""
    seen = here.gather(files_in(checkpoint))
    names = sorted(set().union(*seen))
    mine = fingerprints(checkpoint, names[here.rank :: here.world_size], sync=True)
    return {name: found for part in here.gather(mine) for name, found in part.items()}


def _finish(
    checkpoint: Path,
    folder: Path,
    files: dict[str, dict[str, Any]],
    facts: Callable[[], dict[str, Any]],
) -> None:
    seal(checkpoint, files, facts())
    put_in_place(checkpoint, folder)
    shutil.rmtree(checkpoint.parent, ignore_errors=True)


def prune(folder: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints of a folder over ``limit``; never the newest nor the best."""
    found = checkpoints(folder)
    if not limit or limit < 1:
        return
    there = best is not None and Path(best).exists()  # it may lie in another run
    kept = {found[-1], *(path for path in found if there and path.samefile(str(best)))}
    spare = [path for path in found if path not in kept]
    for path in spare[: max(0, len(found) - max(limit, len(kept)))]:
        shutil.rmtree(path, ignore_errors=True)
