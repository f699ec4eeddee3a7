"""Saving a checkpoint so that it is whole or not there: beside its place, sealed, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from orpo_dist.checkpoints.pieces import Unwritten
from orpo_dist.engines.runtime import Runtime
from orpo_dist.runs.lineage import SAVING, checkpoints, put_in_place
from orpo_dist.runs.manifest import files_in, fingerprints, seal


class Saving:
    """A checkpoint that all ranks have written, and that is on its way to the disk.

    What it holds is safe from the training that goes on: it lies in files, if not yet on the disk,
    or in copies. A thread of every rank writes those, and reads its share of the files for their
    checksums. Until ``finish``, ``folder`` holds what it held before, wherever this is cut off.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        write: Callable[[Path], Sequence[Unwritten]],
        facts: Callable[[], dict[str, Any]],
        here: Runtime,
    ):
        """Let every rank ``write`` into the folder it is given, for checkpoint ``name``.

        All ranks together. write: returns what is still to be written. facts: asked on rank 0 for
        what the manifest says.
        """
        self.folder, self.here = folder, here
        scratch = folder / SAVING
        here.on_main(partial(_clear, scratch))
        self._later = list(write(scratch))
        self.checkpoint = scratch / name
        self._facts = facts() if here.is_main else {}
        here.wait()  # all have written
        # A file system may show a rank the files of others late.
        sizes = {k: v for seen in here.gather(_sizes(self.checkpoint)) for k, v in seen.items()}
        copied = here.gather(sum(file.nbytes for file in self._later))
        self.bytes = here.agree_on_most(sum(sizes.values()) + sum(copied))
        mine = sorted(sizes)[here.rank :: here.world_size]
        self._pool = ThreadPoolExecutor(1)
        self._found: Future[dict[str, dict[str, Any]]] = self._pool.submit(self._to_disk, mine)

    def _to_disk(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """Fingerprints of some files and of those that were still to be written; in a thread."""
        own = [file.write().relative_to(self.checkpoint).as_posix() for file in self._later]
        return fingerprints(self.checkpoint, [*names, *own], sync=True)

    @property
    def on_disk(self) -> bool:
        """Whether every rank is through with its files; all ranks together."""
        return not self.here.agree_on_most(not self._found.done())

    def finish(self) -> None:
        """Wait for the disk and put the checkpoint in its place; all ranks together.

        Raises on every rank where one could not write a file to its end.
        """
        failure = self._found.exception()
        mine = {} if failure else self._found.result()
        self._pool.shutdown()
        found = self.here.gather((mine, failure and str(failure)))
        if failure:
            raise failure
        for _, other in found:
            if other:
                raise OSError(other)
        files = {name: one for part, _ in found for name, one in part.items()}
        self.here.on_main(partial(self._put_in_place, files))

    def _put_in_place(self, files: dict[str, dict[str, Any]]) -> None:
        seal(self.checkpoint, files, self._facts)
        put_in_place(self.checkpoint, self.folder)
        shutil.rmtree(self.checkpoint.parent, ignore_errors=True)


def _clear(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)


def _sizes(checkpoint: Path) -> dict[str, int]:
    """The files of a checkpoint and their sizes in bytes, as this rank sees them."""
    return {name: (checkpoint / name).stat().st_size for name in files_in(checkpoint)}


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
