"""Signals that end a sweep: Ray Tune ends it on SIGINT and SIGUSR1, here on SIGTERM as well."""

from __future__ import annotations

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Remembers which signal came. Entered around ``Tuner.fit``.

    Tune puts its own handlers in place when its loop starts: ``watch``, called from within that
    loop, puts this one before them. Until then, SIGTERM is as Ctrl-C.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._tune: Any = None

    def __enter__(self) -> StopSignals:
        global _current  # noqa: PLW0603 (the loop's callbacks know nothing of the driver)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            _current = self
        return self

    def __exit__(self, *exception: object) -> None:
        global _current  # noqa: PLW0603
        _current = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self) -> None:
        if self._tune is None:
            self._tune = signal.getsignal(signal.SIGUSR1)
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait
        self.number = self.number or number
        self._tune(signal.SIGINT, frame)
        signal.signal(signal.SIGINT, self._note)  # Tune's handler has reset it


_current: StopSignals | None = None


def watch() -> None:
    """From within Tune's loop: note the signals that end it."""
    if _current is not None:
        _current.watch()
