"""A full disk by whatever name a library calls it."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

import pytest
import torch

from orpo_dist.base.storage import quiet_writers, storage_failure
from orpo_dist.runs.folder import RunFolder
from orpo_dist.runs.lineage import SAVING


def os_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (os_error(errno.ENOSPC), "No space left on device"),
        (os_error(errno.EROFS, "/elsewhere/x"), "Read-only file system"),
        (RuntimeError("I/O error: File too large (os error 27)"), "File too large"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "a file could not be"),
        (os_error(errno.EACCES, "/run/a/checkpoint-3"), "Permission denied"),
        (os_error(errno.EACCES, "/data/pairs.jsonl"), None),
        (os_error(errno.ENOENT, "/run/a/x"), None),
        (RuntimeError("Connection closed by peer"), None),
    ],
)
def test_what_the_disk_refused(error: Exception, reason: str | None) -> None:
    wrapped = ValueError("saving failed")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        found = storage_failure(one, Path("/run/a"))
        assert found is None if reason is None else str(found).startswith(reason)


def test_torch_on_a_full_disk_is_known(tmp_path: Path) -> None:
    """It does not say so itself; files of this process may grow to 64 KiB while it saves 1 MiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises((RuntimeError, OSError)) as caught:
            torch.save(torch.zeros(1 << 18), tmp_path / "state.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert storage_failure(caught.value, tmp_path) is not None


def test_threads_that_write_keep_quiet_about_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: said.append(str(failed.exc_value)))

    def fails(error: Exception) -> None:
        raise error

    with quiet_writers(tmp_path):
        for error in (os_error(errno.ENOSPC), KeyError("a bug")):
            thread = threading.Thread(target=fails, args=(error,))
            thread.start()
            thread.join()
    assert said == ["'a bug'"]


def test_the_end_is_noted_whatever_the_disk_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.update_run(status="running")
    (tmp_path / SAVING / "checkpoint-3").mkdir(parents=True)
    whole = Path.replace

    def full(self: Path, target: Path) -> Path:
        raise os_error(errno.ENOSPC)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        folder.update_run(status="completed")
    folder.drop_unfinished()
    folder.update_run(at_all_costs=True, status="failed")
    monkeypatch.setattr(Path, "replace", whole)
    assert '"failed"' in folder.run.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
