"""Signals heard from a thread, and which of them is the second: the one that ends everything."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

ECHO = 1.0  # s; a launcher, a terminal and SLURM deliver the same signal more than once
LAST_WORDS = 3.0  # s; from the second signal to the end of what does not end by itself
ENDING = {signal.SIGINT, signal.SIGTERM}


class Demands:
    """Counts Ctrl-C and SIGTERM. SIGUSR1, which asks for a requeue, may come before either."""

    def __init__(self) -> None:
        self._first: float | None = None

    def final(self, number: int) -> bool:
        """Whether this signal is another one after the first, and not its echo."""
        if number not in ENDING:
            return False
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first > ECHO


def hear_signals(hear: Callable[[int], None]) -> Callable[[], None]:
    """Call ``hear`` with every signal that has a handler, from a thread; returns what ends that.

    Python runs handlers in the main thread, which may wait in C++ for another rank, deaf for hours.
    To be called in the main thread.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    written = sender.detach()  # open until it is closed by number
    before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)

    def listen() -> None:
        while number := receiver.recv(1):
            hear(number[0])
        receiver.close()

    def stop() -> None:
        with contextlib.suppress(ValueError):  # the former listener has gone meanwhile
            signal.set_wakeup_fd(before)
        os.close(written)

    threading.Thread(target=listen, daemon=True).start()
    return stop
