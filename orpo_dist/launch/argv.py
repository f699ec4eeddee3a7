"""A preset, a topology and a command -> the one ``accelerate launch`` that runs them."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from orpo_dist.base.signals import ENDING
from orpo_dist.base.types import UserError
from orpo_dist.launch.gpus import visible_gpus
from orpo_dist.launch.machine import await_first_machine, check_first_machine, free_port
from orpo_dist.launch.presets import Preset

MULTI_MACHINE_PORT = 29500  # as everywhere; all machines must agree on it


@dataclass(frozen=True)
class Topology:
    """num_processes: over all machines. machine_rank: which machine this is.

    main_process_ip, main_process_port: where machine 0 listens. rdzv_id: tells attempts apart.
    patience: seconds to wait for machine 0.
    """

    num_processes: int | None = None
    num_machines: int = 1
    machine_rank: int = 0
    main_process_ip: str | None = None
    main_process_port: int | None = None
    rdzv_id: str | None = None
    patience: float = 300.0


@dataclass(frozen=True)
class Launch:
    """argv and the variables to add to the environment; ``run`` replaces this process with it."""

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As one would type it in a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.argv)])

    def run(self) -> None:
        """Does not return."""
        sys.stdout.flush()
        # Until the launcher listens (and unblocks them), signals wait; a mask outlives exec.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGUSR1})
        os.execve(self.argv[0], self.argv, {**os.environ, **self.environment})  # noqa: S606


def processes_of(preset: Preset, topology: Topology) -> int:
    """How many processes start over all machines; ``UserError`` if this machine cannot serve."""
    gpus, machines = visible_gpus(), topology.num_machines
    wanted = topology.num_processes
    if preset.engine.name == "single":
        if (wanted or 1) > 1 or machines > 1:
            raise UserError("preset single is one process: use ddp, fsdp2 or zero1 to zero3")
        return 1
    if wanted is None:
        if not gpus:
            raise UserError(
                "num-processes is missing: this machine has no GPU to count, so say how many "
                "processes to start over all machines"
            )
        return gpus * machines
    if wanted % machines:
        raise UserError(f"num-processes {wanted}: is not divisible by {machines} machines")
    here = wanted // machines
    if gpus and here > gpus:
        raise UserError(
            f"num-processes {wanted}: that is {here} on this machine, which has {gpus} "
            f"GPU{'s' * (gpus > 1)}; start one process per GPU"
        )
    return wanted


def plan_launch(
    preset: Preset, topology: Topology, processes: int, command: list[str], nvme: str | None = None
) -> Launch:
    """The command line and environment of a launch. command: what orpo-dist shall do."""
    here = processes // topology.num_machines
    argv = [sys.executable, "-m", "orpo_dist.launch.accelerate", "launch"]
    argv += ["--config_file", str(preset.path), "--num_processes", str(processes)]
    argv += ["--num_machines", str(topology.num_machines)]
    argv += ["--machine_rank", str(topology.machine_rank)]
    if topology.num_machines > 1:
        argv += ["--main_process_ip", str(topology.main_process_ip)]
    if preset.engine.name != "single":
        argv += ["--main_process_port", str(port_of(topology))]
    if preset.deepspeed is not None:
        argv += ["--deepspeed_config_file", str(preset.deepspeed)]
    environment = {}
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, _cores() // here))
    if topology.rdzv_id is not None:
        environment["PET_RDZV_ID"] = topology.rdzv_id  # torchrun's; accelerate has no flag for it
    if preset.engine.offload == "nvme":
        for part in ("PARAM", "OPTIMIZER"):
            environment[f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_NVME_PATH"] = _nvme_path(nvme)
    return Launch([*argv, "-m", "orpo_dist", *command], environment)


def port_of(topology: Topology) -> int:
    """The port of the first process; on one machine any free one."""
    if topology.main_process_port is not None:
        return topology.main_process_port
    return free_port() if topology.num_machines == 1 else MULTI_MACHINE_PORT


def check_topology(topology: Topology) -> None:
    """``UserError`` for numbers that do not fit together."""
    machines, rank = topology.num_machines, topology.machine_rank
    processes = 1 if topology.num_processes is None else topology.num_processes
    if machines < 1 or processes < 1:
        raise UserError("num-processes and num-machines must be at least 1")
    if not 0 <= rank < machines:
        raise UserError(
            f"machine-rank {rank}: with {machines} machine{'s' * (machines > 1)} it must be "
            f"between 0 and {machines - 1}"
        )
    if machines > 1 and topology.main_process_ip is None:
        raise UserError("main-process-ip is missing: all machines need the address of the first")


def meet_first_machine(topology: Topology) -> None:
    """``UserError`` where several machines would wait for each other in vain."""
    if topology.num_machines == 1:
        return
    host, port = str(topology.main_process_ip), port_of(topology)
    if topology.machine_rank == 0:
        check_first_machine(host, port)
    else:
        await_first_machine(host, port, topology.patience)


def _nvme_path(path: str | None) -> str:
    if path is None:
        raise UserError("nvme-path is missing: name a folder on the NVMe disk to offload to")
    return str(Path(path).resolve())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
