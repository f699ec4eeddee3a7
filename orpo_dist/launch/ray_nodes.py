"""Waiting until a Ray cluster that is being started has all its nodes."""

from __future__ import annotations

import logging
import os
import socket
import time

from orpo_dist.base.types import UserError


def wait_for_ray(nodes: int, seconds: float) -> None:
    """Until ``nodes`` live Ray nodes are at ``RAY_ADDRESS``; ``UserError`` after ``seconds``."""
    try:
        import ray
    except ImportError as error:
        raise UserError("ray is not installed: pip install 'orpo_dist[ray]'") from error
    address = os.environ["RAY_ADDRESS"]
    deadline = time.monotonic() + seconds
    while not _listens(address):  # before ray.init, which is slow to give up
        if time.monotonic() > deadline:
            raise UserError(f"no Ray head at {address} after {seconds:g} s: see its log")
        time.sleep(0.2)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        while True:
            alive = [node["NodeName"] for node in ray.nodes() if node["Alive"]]
            if len(alive) >= nodes:
                return
            if time.monotonic() > deadline:
                raise UserError(
                    f"{len(alive)} of {nodes} Ray nodes after {seconds:g} s ({', '.join(alive)}): "
                    "see the logs of the others"
                )
            time.sleep(0.2)
    finally:
        ray.shutdown()


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True
