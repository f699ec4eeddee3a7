"""A job in which a rank hangs says so and ends, with the stacks of all ranks that still run.

A thread of every rank shows that its process runs (``heartbeats``), looks whether the next rank's
does, and times what must not take long: a step, the wait for its data, a batch of an evaluation.
What may take hours is not timed: reading data, loading, the first step with what it compiles,
saving. ``hang_timeout`` never counts for less than three times the longest seen so far.
"""

from __future__ import annotations

import contextlib
import faulthandler
import shutil
import sys
import threading
import time
from typing import Any

from transformers import TrainerCallback

from orpo_dist.base.exits import COMMAND, EXIT_HUNG, end_now
from orpo_dist.engines.runtime import Runtime
from orpo_dist.runs.folder import RunFolder, read_json, write_json
from orpo_dist.runs.heartbeats import DONE, FOLDER, UNTIMED, Heartbeats, Seen

STACKS = "hang"  # in the run folder: rank-0.txt, ... of a job that hung
SLOWER = 3.0  # times the longest of its kind that a step may take, where that is more
LOOKS = 20  # in hang_timeout
GO_ON = "go on with the same command and --resume-from-checkpoint auto"
LONGEST_PERIOD = 15.0  # s between two of them
LAST_BEATS = 2.0  # s; at the end, for those of other ranks
STEP, DATA, EVALUATION = "step", "the wait for data", "a batch of the evaluation"


class Watch(TrainerCallback):
    """While entered, ends the job with ``EXIT_HUNG`` where nothing moves for ``timeout`` seconds.

    To be entered by all ranks. Does nothing at 0, and nothing in a process that is not a command's
    own (a notebook's) and alone.
    """

    def __init__(self, folder: RunFolder, runtime: Runtime, timeout: float):
        self.folder, self.timeout = folder, timeout
        self.runtime = runtime
        self.period = min(LONGEST_PERIOD, timeout / LOOKS)
        self.beats = Heartbeats(folder.path / FOLDER, runtime.rank, runtime.world_size)
        self._step = 0
        self._doing = (UNTIMED, time.monotonic())  # since when; one value, as two threads use it
        self._excused = 0.0  # until when nothing counts: another rank saved, this one was stopped
        self._longest: dict[str, float] = {}
        self._first = True
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if self.timeout > 0 and (self.runtime.world_size > 1 or COMMAND.is_set()):
            self.runtime.on_main(self._clear)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is None:
            return
        self._done.set()
        self._thread.join(self.period)  # it may wait for a disk that is gone
        self.beats.beat(self._step, DONE)
        if self.runtime.is_main:
            until = time.monotonic() + LAST_BEATS
            while not self.beats.done(self._others()) and time.monotonic() < until:
                time.sleep(0.01)
            shutil.rmtree(self.beats.folder, ignore_errors=True)

    def _clear(self) -> None:
        shutil.rmtree(self.beats.folder, ignore_errors=True)
        self.beats.folder.mkdir()

    # --- what training does now

    def _now(self, doing: str) -> None:
        before, now = self._doing[0], time.monotonic()
        if before != UNTIMED:
            self._longest[before] = max(self._longest.get(before, 0.0), self._waited())
        self._doing = (doing, now)

    def _waited(self) -> float:
        """Seconds that training has done what it does now, without those that are excused."""
        return time.monotonic() - max(self._doing[1], self._excused)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first = True
        self._now(UNTIMED)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = state.global_step + 1
        self._now(UNTIMED if self._first else STEP)
        self._first = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        long = control.should_save or control.should_evaluate or control.should_training_stop
        self._now(UNTIMED if long else DATA)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._now(EVALUATION)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._now(UNTIMED)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._now(UNTIMED)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._now(UNTIMED)

    # --- the thread

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            self.beats.beat(self._step, self._doing[0])
            if self._done.wait(self.period):
                return
            now = time.monotonic()
            if now - last > max(3 * self.period, self.timeout / 2):  # stopped itself: Ctrl-Z, say
                self.beats.forget()
                self._excused = now
            last = now
            if sentence := self.beats.verdict() or self._judge():
                self._end(sentence)

    def _judge(self) -> str | None:
        """What hangs, in one sentence; None where nothing does."""
        doing, since = self._doing
        waited = time.monotonic() - max(since, self._excused)
        late = doing != UNTIMED and waited > self._limit(doing)
        suspicious = doing != UNTIMED and waited > self.timeout / 2
        self.beats.look_at(self._others() if suspicious else self._others()[:1])
        if quiet := self.beats.quiet(self.timeout / 4 if late else self.timeout):
            return f"{_named(quiet)}: no sign of life for {_seconds(quiet)} s"
        if suspicious and self.beats.excused:
            self._excused = time.monotonic()
            return None
        if not late:
            return None
        if doing == STEP and (behind := self.beats.behind(self._step)):
            return f"{_named(behind)}: has not begun step {self._step} for {waited:.0f} s"
        what = f"step {self._step}" if doing == STEP else f"{doing} after step {self._step}"
        alone = "" if self.runtime.world_size == 1 else ", and no rank is behind the others"
        return f"{what} has not ended for {waited:.0f} s{alone}"

    def _limit(self, doing: str) -> float:
        return max(self.timeout, SLOWER * self._longest.get(doing, 0.0))

    def _others(self) -> list[int]:
        """All other ranks, beginning with the next one: everyone has one who looks at it."""
        rank, world = self.runtime.rank, self.runtime.world_size
        return [(rank + away) % world for away in range(1, world)]

    def _end(self, sentence: str) -> None:
        """Leave stacks; wait until all ranks had time to leave theirs; end this process."""
        first = self.beats.pronounce(sentence)
        if first:
            print(
                f"orpo-dist: error: the job hangs ({sentence}); stacks of the ranks that run are "
                f"in {self.folder.path / STACKS}; {GO_ON}",
                file=sys.stderr,
                flush=True,
            )
        with contextlib.suppress(OSError):
            self._leave_stacks(sentence)
            if first:
                told = {"status": "failed", "error": f"the job hangs ({sentence})"}
                write_json(self.folder.run, {**read_json(self.folder.run), **told})
        time.sleep(2 * self.period + 1)
        end_now(EXIT_HUNG)

    def _leave_stacks(self, sentence: str) -> None:
        stacks = self.folder.path / STACKS
        stacks.mkdir(exist_ok=True)
        with (stacks / f"rank-{self.runtime.rank}.txt").open("w", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)


def _named(ranks: list[Seen]) -> str:
    return ", ".join(str(seen.beat) for seen in ranks[:3]) + (" and more" if len(ranks) > 3 else "")


def _seconds(ranks: list[Seen]) -> int:
    return round(time.monotonic() - min(seen.since for seen in ranks))
