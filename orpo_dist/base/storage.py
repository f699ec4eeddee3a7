"""A disk that is full or may not be written to, told in one sentence whichever library met it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Libraries that write in another language pass on the words alone, or not even those.
WORDS = {
    os.strerror(number): os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
} | dict.fromkeys(
    ("PytorchStreamWriter failed", "unexpected pos"), "a file could not be written to its end"
)  # torch.save's
# What may as well come from reading; it counts where the run itself writes.
OURS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTCONN)


def storage_failure(error: BaseException, folder: Path) -> str | None:
    """What the disk under ``folder`` has refused, for the end of a sentence; None: nothing.

    Causes count, as libraries wrap what happened.
    """
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        for words, reason in WORDS.items():
            if words in str(link):
                return reason
        if isinstance(link, OSError) and link.errno in OURS and link.filename:
            place = Path(os.fsdecode(link.filename)).absolute()
            if folder.absolute() in place.parents:
                return str(link.strerror)
        seen.append(link)
        link = link.__cause__ or link.__context__
    return None


@contextlib.contextmanager
def quiet_writers(folder: Path) -> Iterator[None]:
    """Within it, threads that write (TensorBoard's) leave the word on a full disk to the run."""
    former = threading.excepthook

    def hook(failed: Any) -> None:
        if failed.exc_value is None or storage_failure(failed.exc_value, folder) is None:
            former(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = former
