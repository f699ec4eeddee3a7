"""Signals: finish the step on every rank, save a checkpoint, then stop with a telling exit code."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from orpo_dist.base.exits import COMMAND, EXIT_INTERRUPTED, EXIT_REQUEUE, end_now
from orpo_dist.base.signals import LAST_WORDS, Demands, hear_signals
from orpo_dist.engines.runtime import Runtime

logger = logging.getLogger("orpo_dist")

# Ranks may get different signals; the strongest one decides for all.
STRENGTH = {signal.SIGUSR1: 1, signal.SIGTERM: 2, signal.SIGINT: 2}
EXIT_CODES = {1: EXIT_REQUEUE, 2: EXIT_INTERRUPTED}


class Interrupted(Exception):
    """Training stopped on a signal after saving; the message says how to go on."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class StopOnSignal(TrainerCallback):
    """While entered, turns signals into a clean stop.

    Before training, Ctrl-C and SIGTERM end at once, there being nothing to save. In training, the
    first signal on any rank ends all ranks after the step, with a checkpoint; a second Ctrl-C or
    SIGTERM ends this process within seconds, also where it waits for ranks that hang. SIGUSR1 is
    always remembered until training can act on it.
    """

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.exit_code: int | None = None  # set once all ranks have agreed to stop
        self._strength = 0
        self._noted, self._heard = Demands(), Demands()
        self._end = threading.Timer(LAST_WORDS, end_now, (EXIT_INTERRUPTED,))
        self._end.daemon = True
        self._stop_hearing: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, signal.default_int_handler)
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note)
            self._before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
            self._stop_hearing = hear_signals(self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stop_hearing is not None:
            self._stop_hearing()
        self._end.cancel()
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: Any) -> None:
        """Remember a signal; Python runs this between two instructions of the main thread."""
        name = signal.Signals(number)
        if self._noted.final(number):
            raise KeyboardInterrupt
        if not self._strength:
            logger.warning("%s: finishing this step and saving first", name.name)
        self._strength = max(self._strength, STRENGTH[name])

    def _hear(self, number: int) -> None:
        """In a thread: the main one may wait for another rank, and hear nothing any more."""
        if self._heard.final(number) and COMMAND.is_set() and not self._end.is_alive():
            self._end.start()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._before:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        strength = self.runtime.agree_on_most(self._strength)
        if strength:
            self.exit_code = EXIT_CODES[strength]
            control.should_training_stop = True
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer ends the epoch wherever it stops; but it is evaluated when it is whole.

        Else a stopped run would have one evaluation more, which counts for patience and the best.
        """
        whole = math.isclose(state.epoch, round(state.epoch), abs_tol=1e-9)
        if self.exit_code is not None and not whole:
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What follows saves the model itself: from here on a signal ends the run at once."""
        if self._before:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
