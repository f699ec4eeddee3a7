"""What the preflight runs on every node: one JSON line on stdout for every check that is passed."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from orpo_dist.base.exits import EXIT_BAD_NODES

STAGES = ("answers", "gpus", "shared folder", "all-reduce")
CANARY = "canary"


def probe(folder: Path, token: str, gpus: int, nodes: list[str], port: int, seconds: float) -> None:
    """Check this node as one of the nodes of a step; exits with 4 at the first check that fails.

    folder, token: a folder on the shared file system, and what its canary file holds.
    gpus: how many CUDA devices this node is to see; 0 checks none.
    nodes: all nodes of the all-reduce by rank; they meet at the first one's ``port``.
    seconds: limit of every check.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    say("answers", loopback="" if gpus else loopback_address())
    if gpus:
        check_gpus(gpus)
    say("gpus")
    check_folder(folder, token, seconds)
    say("shared folder")
    # Where one node fails at once, gloo lets the others wait for minutes, whatever its limit is.
    limit = threading.Timer(seconds, _out_of_time, [seconds])
    limit.daemon = True
    limit.start()
    try:
        all_reduce("nccl" if gpus else "gloo", nodes, port, seconds)
    except Exception as error:  # torch, gloo and NCCL raise whatever they like
        fail("all-reduce", _last_line(error))
    limit.cancel()
    say("all-reduce")


def _out_of_time(seconds: float) -> NoReturn:
    say("all-reduce", problem=f"did not end in {seconds:g} s")
    os._exit(EXIT_BAD_NODES)


def say(stage: str, **entries: Any) -> None:
    line = {"node": node(), "stage": stage, **entries}
    print(json.dumps(line), flush=True)


def fail(stage: str, problem: str) -> NoReturn:
    say(stage, problem=problem)
    raise SystemExit(EXIT_BAD_NODES)


def node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_gpus(wanted: int) -> None:
    import torch

    seen = torch.cuda.device_count()
    if seen != wanted:
        fail("gpus", f"sees {seen} of {wanted} GPUs")
    for index in range(seen):
        try:
            torch.ones(1, device=f"cuda:{index}").sum().item()
        except RuntimeError as error:
            fail("gpus", f"GPU {index} does not compute: {_last_line(error)}")


def check_folder(folder: Path, token: str, seconds: float) -> None:
    """Both ways: this node sees the first node's file, and leaves one for the first node to see."""
    deadline = time.monotonic() + seconds
    while True:  # network file systems show a new file after some seconds
        try:
            if (folder / CANARY).read_text() == token:
                (folder / node()).write_text(token)
                return
            problem = "its canary file is an old one"
        except OSError as error:
            problem = error.strerror or str(error)
        if time.monotonic() > deadline:
            fail("shared folder", f"does not share {folder} with the first node ({problem})")
        time.sleep(0.5)


def all_reduce(backend: str, nodes: list[str], port: int, seconds: float) -> None:
    import torch
    import torch.distributed as dist

    world = len(nodes)
    dist.init_process_group(
        backend,
        init_method=f"tcp://{nodes[0]}:{port}",
        rank=nodes.index(node()),  # SLURM has its own order of tasks
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )
    ones = torch.ones(1 << 18, device="cuda:0" if backend == "nccl" else "cpu")
    dist.all_reduce(ones)
    if not bool((ones == world).all()):
        raise RuntimeError(f"the sum over {world} nodes is {ones.mean().item():g}")
    dist.barrier()
    dist.destroy_process_group()


def loopback_address() -> str:
    """The address of this host's name where that is loopback, as Debian's installer makes it.

    gloo offers that address to the other nodes, who then connect to themselves.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return ""
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""
    return address if address.startswith("127.") else ""


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
