"""Signs of life of all ranks, as small files: they tell who is missing when nobody can be asked.

Ranks that wait for each other in a collective cannot use another one to find out why.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from orpo_dist.runs.folder import write_json

FOLDER = ".heartbeats"
VERDICT = "verdict"
UNTIMED, DONE = "untimed", "done"  # what a rank may do for hours; that it does nothing any more


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself. number: grows for as long as its process runs at all."""

    rank: int
    number: int
    step: int  # the last one that it has begun
    doing: str
    host: str = ""
    pid: int = 0

    def __str__(self) -> str:
        return f"rank {self.rank}" + (f" (process {self.pid} on {self.host})" if self.pid else "")


@dataclass
class Seen:
    """The last beat of a rank that was read here, and when it was new, on this clock (s)."""

    beat: Beat
    since: float


class Heartbeats:
    """One file a rank in ``folder``, written by it and read by any other."""

    def __init__(self, folder: Path, rank: int, world_size: int):
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.seen: dict[int, Seen] = {}
        self._number = 0

    def beat(self, step: int, doing: str) -> None:
        """Show that this process runs. Never raises: a full disk is not this thread's to tell."""
        self._number += 1
        host, pid = socket.gethostname(), os.getpid()
        beat = Beat(self.rank, self._number, step, doing, host, pid)
        with contextlib.suppress(OSError):
            write_json(self.folder / f"rank-{self.rank}", asdict(beat))

    def look_at(self, ranks: list[int]) -> None:
        """Read the beats of some ranks, and forget the others; a missing one stays as it was."""
        now = time.monotonic()
        last = {rank: seen for rank, seen in self.seen.items() if rank in ranks}
        for rank in ranks:
            beat = self._read(rank)
            if rank not in last:
                last[rank] = Seen(beat or Beat(rank, 0, 0, UNTIMED), now)
            elif beat is not None and beat != last[rank].beat:
                last[rank] = Seen(beat, now)
        self.seen = last

    def forget(self) -> None:
        """Begin to look anew, after a time in which this process could not."""
        self.seen.clear()

    def quiet(self, seconds: float) -> list[Seen]:
        """Ranks that have been looked at for so long without a new beat, and are not done."""
        now = time.monotonic()
        return [
            seen
            for seen in self.seen.values()
            if now - seen.since > seconds and seen.beat.doing != DONE
        ]

    def done(self, ranks: list[int]) -> bool:
        """Whether all of these ranks have said their last."""
        beats = (self._read(rank) for rank in ranks)
        return all(beat is not None and beat.doing == DONE for beat in beats)

    def behind(self, step: int) -> list[Seen]:
        """Ranks that have not begun a step."""
        return [seen for seen in self.seen.values() if seen.beat.step < step]

    @property
    def excused(self) -> bool:
        """Whether a rank does what may take long, e.g. writes its part of a checkpoint."""
        return any(seen.beat.doing in (UNTIMED, DONE) for seen in self.seen.values())

    def _read(self, rank: int) -> Beat | None:
        try:
            return Beat(**json.loads((self.folder / f"rank-{rank}").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    # --- the end

    def verdict(self) -> str | None:
        """What a rank has found, for all to act on."""
        try:
            return (self.folder / VERDICT).read_text(encoding="utf-8")
        except OSError:
            return None

    def pronounce(self, sentence: str) -> bool:
        """Tell all ranks; False where another one was quicker."""
        try:
            with (self.folder / VERDICT).open("x", encoding="utf-8") as file:
                file.write(sentence)
        except FileExistsError:
            return False
        except OSError:  # then every rank finds out by itself
            return True
        return True
