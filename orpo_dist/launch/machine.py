"""This machine's ports and its way to the first machine."""

from __future__ import annotations

import random
import socket
import time

from orpo_dist.base.types import UserError

FIRST_PORT, LAST_PORT = 20000, 32767  # above the usual services, below what systems hand out


def free_port() -> int:
    """A port that nobody listens on, drawn at random so that two launches at once differ."""
    draw = random.SystemRandom()
    for _ in range(100):
        port = draw.randint(FIRST_PORT, LAST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port between {FIRST_PORT} and {LAST_PORT} on this machine")


def check_first_machine(host: str, port: int) -> None:
    """On the first machine: ``UserError`` unless ``host`` is its own address and ``port`` free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_resolve(host), port))
        except OSError as error:
            raise UserError(
                f"main-process-ip {host}, port {port}: machine rank 0 cannot listen there "
                f"({error.strerror}); give an address of this machine and a free port"
            ) from error


def await_first_machine(host: str, port: int, patience: float) -> None:
    """On the other machines: return once the first one answers; ``UserError`` if it does not.

    patience: seconds to wait for it, since machines do not start at the same moment.
    """
    address, deadline = _resolve(host), time.monotonic() + patience
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"main-process-ip {host}: the first machine does not answer on port {port} "
                    f"after {patience:.0f} s ({error.strerror or error}); check the address, the "
                    "firewall, and that machine rank 0 was started"
                ) from error
            time.sleep(min(1.0, patience))


def _resolve(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise UserError(f"main-process-ip {host}: is no known host ({error.strerror})") from error
