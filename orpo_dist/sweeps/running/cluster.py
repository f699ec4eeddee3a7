"""The Ray that a sweep runs on: an existing cluster, or one on this machine alone.

Here and in its neighbours Ray is imported inside of functions: it need not be installed, and reads
from the environment, as it is imported, what ``prepare_environment`` has to settle before.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from orpo_dist.base.types import UserError
from orpo_dist.launch.gpus import visible_gpus
from orpo_dist.sweeps.searched.config import SweepConfig
from orpo_dist.upstream import check
from orpo_dist.upstream.ray import on_loopback

Resources = dict[str, float]

# Variables that decide what a run sees; machines of a cluster do not inherit them.
PASSED_ON = (
    "ORPO_DIST_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH", "PYTHONPATH",
    "OMP_NUM_THREADS", "CUDA_DEVICE_ORDER", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME",
)  # fmt: skip
OBJECT_STORE = 128 << 20  # bytes; only metrics and configs pass through it


def prepare_environment() -> None:
    """Settle what Ray reads from the environment as it is imported; to be called before that.

    Raises ``UserError`` if Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("sweeps need Ray: pip install 'orpo_dist[ray]'")
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.pop("RAY_ADDRESS", None)  # empty is not an address
        # Its word for "this machine only": without it Ray listens on the machine's own address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # And others on it may not use what we start; where Ray is imported it has read the mode.
        if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # This machine is not one of many that could be taken away: no process to watch for that.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # A trial has more processes than it has cores, which Ray would find worth a warning.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "64")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # run folders hold the logs
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "60")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths stay the user's


def connect() -> bool:
    """Join the cluster of ``RAY_ADDRESS`` or start one here; False if this process is in one.

    Raises ``UserError`` if the cluster does not answer.
    """
    prepare_environment()
    check("ray")
    import ray

    if ray.is_initialized():
        return False
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    common: dict[str, Any] = {
        "runtime_env": {"env_vars": variables},
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if "RAY_ADDRESS" in os.environ:
        _require_listener(os.environ["RAY_ADDRESS"])
        try:
            ray.init(**common)
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            raise UserError(
                f"RAY_ADDRESS {os.environ['RAY_ADDRESS']}: no Ray cluster answers there "
                f"({' '.join(str(error).split())[:200]}); unset it to run on this machine"
            ) from error
        return True
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        num_gpus=_gpus_for_ray(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        **on_loopback(),
        **common,
    )
    return True


def _require_listener(address: str) -> None:
    """``UserError`` where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and "/" not in host):
        return  # auto, ray://…: Ray knows how to find out
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS {address}: nothing listens there ({error}); start Ray there, or unset it "
            "to run on this machine"
        ) from error


def _gpus_for_ray() -> int | None:
    """How many Ray may give away; None where it has to find out itself, as for other makers'."""
    gpus = visible_gpus()
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ  # Ray would take "-1" for the name of one
    return gpus if gpus or hidden else None


def capacities() -> list[Resources]:
    """What every live machine of the cluster has in all."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def resources_of_worker(sweep: SweepConfig, machines: Sequence[Mapping[str, float]]) -> Resources:
    """What Ray sets aside for one worker."""
    wanted = dict(sweep.resources_per_worker)
    if "GPU" not in wanted and any(machine.get("GPU", 0) >= 1 for machine in machines):
        wanted["GPU"] = 1.0
    return {"CPU": 1.0, **wanted}


def slots(
    machines: Sequence[Mapping[str, float]],
    worker: Mapping[str, float],
    workers: int,
    one_machine: bool = False,
) -> int:
    """How many trials of ``workers`` workers fit on these machines at once."""
    wanted = {name: amount for name, amount in worker.items() if amount > 0}
    if not wanted:
        return 1
    room = [
        math.floor(min(machine.get(name, 0.0) / amount for name, amount in wanted.items()) + 1e-9)
        for machine in machines
    ]
    return sum(here // workers for here in room) if one_machine else sum(room) // workers


def idle_share(machines: Sequence[Mapping[str, float]], at_once: int) -> Resources:
    """What a trial's own process asks for, which only waits for its workers: some memory.

    So much that about ``at_once`` fit: a scheduler that pauses trials lets others run in their
    place, and so has to see who may run by what is free.
    """
    memory = sorted((machine.get("memory", 0.0) for machine in machines), reverse=True)
    parts = [m / share for m in memory for share in range(1, at_once + 1)]
    return {"CPU": 0, "memory": math.floor(sorted(parts, reverse=True)[at_once - 1])}


def concurrent_trials(sweep: SweepConfig) -> tuple[int, Resources]:
    """Trials at once, and the resources of a worker; ``UserError`` if not even one can ever run."""
    machines = capacities()
    worker = resources_of_worker(sweep, machines)
    one_machine = sweep.placement == "STRICT_PACK"
    room = slots(machines, worker, sweep.workers_per_trial, one_machine)
    if room == 0:
        need = ", ".join(f"{amount:g} {name}" for name, amount in worker.items())
        have = "; ".join(
            ", ".join(f"{machine.get(name, 0):g} {name}" for name in worker) for machine in machines
        )
        raise UserError(
            f"workers_per_trial {sweep.workers_per_trial}: a trial needs {sweep.workers_per_trial} "
            f"× ({need}), and the cluster's {len(machines)} machine(s) have {have}; lower "
            "workers_per_trial or resources_per_worker"
        )
    return min(room, sweep.max_concurrent_trials or room), worker
