"""A folder that a run writes is its alone: a file says who holds it, and lives by being touched.

No locks of the file system, which shared ones do not all have: the file is made by a hard link or
``O_EXCL``, of which one alone succeeds. It outlives a process that is killed, so it tells who that
was. On the same machine a process that is gone is seen at once; on another one, a lock that has not
been touched for ``DEAD_AFTER`` seconds counts as left behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from orpo_dist.base.exits import EXIT_CRASH, end_now
from orpo_dist.base.types import UserError

logger = logging.getLogger("orpo_dist")

LOCK = "run.lock"
HEARTBEAT = 5.0  # s between two touches of a lock that is held
DEAD_AFTER = 60.0  # s without a touch, after which a lock of another machine is free
ENDING = 5.0  # s; patience with a process of this machine that has been killed and still unwinds
PERIOD = 0.2  # s between two looks while waiting


class InUse(UserError):
    """A folder that another process holds; a mistake, unless that one is about to end."""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder. place: the one within which process ids mean something."""

    host: str
    pid: int
    born: float  # when the process started: a process id is used again some day
    place: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def here(self) -> bool:
        return self.place == _place()

    @property
    def runs(self) -> bool:
        """Whether the process is alive; of this place only."""
        return _born(self.pid) == self.born


def _me() -> Holder:
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
    return Holder(socket.gethostname(), pid, _born(pid) or 0.0, _place(), since, uuid.uuid4().hex)


def _place() -> str:
    """This boot of this machine, and the process ids that its containers do not share."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _born(pid: int) -> float | None:
    """When a process started, on its system's clock; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        return None if state in "ZX" else float(fields[18])
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    import psutil  # no /proc: not Linux

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within it, the folder is this process's; makes the folder if it is not there.

    Raises ``InUse`` where another process holds it. A lock that was left behind is taken over:
    at once, or, where another machine left it, once it has not been touched for a minute.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        me, path = _me(), folder / LOCK
        _take(path, me)
    except OSError as error:
        raise UserError(f"project_name {folder}: cannot be written ({error})") from error
    done = threading.Event()
    thread = threading.Thread(target=_keep, args=(path, me, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if _read(path) == me:
            path.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):  # something is in it, as it should
                folder.rmdir()


def _take(path: Path, me: Holder) -> None:
    told = False
    while not _create(path, me):
        holder = _read(path)
        if not told and holder is not None and not (holder.here and not holder.runs):
            logger.info("project_name %s: held by %s; does it run?", path.parent, holder)
            told = True
        if _left_behind(path, holder, me):
            _remove(path, holder, me)
            logger.info("project_name %s: the lock of %s was left behind", path.parent, holder)
        elif path.exists():
            raise InUse(
                f"project_name {path.parent}: is in use by {holder or 'another process'}; wait "
                f"for it to end, or choose another name (if it surely runs no more: remove {path})"
            )


def _create(path: Path, me: Holder) -> bool:
    """Whether the lock is ours now; whole from the first moment where links can be made."""
    scratch = path.with_name(f".{path.name}.{me.token}")
    content = json.dumps(asdict(me)) + "\n"
    try:
        scratch.write_text(content, encoding="utf-8")
        os.link(scratch, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return _create_exclusively(path, content)
    finally:
        scratch.unlink(missing_ok=True)


def _create_exclusively(path: Path, content: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as lock:
            lock.write(content)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> Holder | None:
    """None where there is no lock, or one that is still being written or damaged."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _left_behind(path: Path, holder: Holder | None, me: Holder) -> bool:
    """Whether nobody holds a lock any more; waits until that is known."""
    if holder is not None and holder.here:
        deadline = time.monotonic() + ENDING
        while holder.runs and time.monotonic() < deadline:
            if _read(path) != holder:
                return False
            time.sleep(PERIOD)
        return not holder.runs
    touched = _touched(path)
    while (age := _now(path, me) - touched) < DEAD_AFTER:
        time.sleep(min(HEARTBEAT, DEAD_AFTER - age) / 5 + 0.01)
        if _touched(path) != touched:
            return False
    return True


def _touched(path: Path) -> float:
    """When a lock was last touched, as its file system has it; opened, as NFS caches it else."""
    try:
        with path.open("rb") as lock:
            return os.fstat(lock.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0


def _now(path: Path, me: Holder) -> float:
    """The time on the clock of the file system: those of machines differ."""
    scratch = path.with_name(f".{path.name}.{me.token}")
    scratch.write_text("", encoding="utf-8")
    try:
        return scratch.stat().st_mtime
    finally:
        scratch.unlink()


def _remove(path: Path, holder: Holder | None, me: Holder) -> None:
    """Remove a lock that was left behind, and no other: one process alone can move it away."""
    scratch = path.with_name(f".{path.name}.{me.token}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(scratch)
        if _read(scratch) != holder:  # another one was quicker, and holds it by now
            with contextlib.suppress(OSError):
                os.link(scratch, path)
        scratch.unlink()


def _keep(path: Path, me: Holder, done: threading.Event) -> None:
    """Touch the lock while it is held. Who lost it, cut off for a minute, must write no more."""
    while not done.wait(HEARTBEAT):
        try:
            found = _read(path)
            if found is None:
                _create(path, me)
            elif found == me:
                os.utime(path)
            else:
                logger.error(
                    "project_name %s: was taken over by %s; this process ends", path.parent, found
                )
                end_now(EXIT_CRASH)
        except OSError as error:  # a disk that is full or gone is the trainer's to tell
            logger.debug("%s: cannot be touched (%s)", path, error)
