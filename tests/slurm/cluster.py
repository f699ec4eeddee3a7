"""A real SLURM on one machine: munged, slurmctld and slurmds, every node in namespaces of its own.

Each node has its own address, host name, processes and /dev/shm, so that a job sees what it would
see on real nodes: ``localhost`` is another machine there, a killed node is gone at once, and
everything else of the file system is the "shared" one. Needs root and the SLURM packages of Debian
or Ubuntu, which are installed if apt reaches them. Every process dies with the one that started it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client",
            "munged": "munge", "ip": "iproute2"}  # fmt: skip
NET = "198.51.100"  # TEST-NET-2; exists inside the namespaces only
CONTROLLER = "ctl"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MORTAL = ("setpriv", "--pdeathsig", "KILL")  # what it starts dies with this process
# What a namespace runs: bash as init reaps orphans, whose zombies would keep jobs COMPLETING.
INIT = """
hostname "$1"; mount --bind "$2/hosts" /etc/hosts; ip link set lo up
for folder in /dev/shm /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "$folder"; done
: > "$2/$1.ready"; trap "exit 0" TERM; while :; do sleep 3600 & wait $!; done
"""
CONFIG = """
ClusterName=test
SlurmctldHost={controller}({net}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for cred_expire (default 120 s; less than 5 is ignored)
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
KillWait=10
SlurmdTimeout=8
CompleteWait=0
PropagateResourceLimits=NONE
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefMemPerCPU=1000 PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=60 DefMemPerCPU=1000 PriorityTier=2
"""


class Unavailable(Exception):
    """Why no cluster can run here, in one sentence."""


def install(seconds: float = 240) -> None:
    """Debian's packages, where they are missing; raises ``Unavailable``."""
    if os.getuid() != 0:
        raise Unavailable("needs root (namespaces, munge)")
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name, path=PATH)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"needs {', '.join(missing)}, and there is no apt-get to install them")
    quiet = Path("/usr/sbin/policy-rc.d")  # keeps packages from starting daemons of their own
    made = not quiet.exists()
    if made:
        quiet.write_text("#!/bin/sh\nexit 101\n")
        quiet.chmod(0o755)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    get = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=60"]
    deadline = time.monotonic() + seconds
    try:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(
                [*get, *command], env=environment, check=True, capture_output=True,
                timeout=deadline - time.monotonic(),
            )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        why = said.splitlines()[-1] if said else type(error).__name__
        raise Unavailable(f"needs {', '.join(missing)}, and apt-get failed: {why}") from error
    finally:
        if made:
            quiet.unlink()


class Cluster:
    """``nodes`` slurmds named node1, node2, … and a controller; ``folder`` holds their state."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 8, gpus: int = 2):
        self.folder = folder
        self.nodes = [f"node{index + 1}" for index in range(nodes)]
        self.cpus, self.gpus = cpus, gpus
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._inits: dict[str, int] = {}

    def start(self) -> None:
        """Up and idle, or ``Unavailable``."""
        for name in ("munge", "state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        self._start_munge()
        self._start_namespace(CONTROLLER)
        self.inside(CONTROLLER, "ip", "link", "add", "br0", "type", "bridge")
        self.inside(CONTROLLER, "ip", "addr", "add", f"{NET}.254/24", "dev", "br0")
        self.inside(CONTROLLER, "ip", "link", "set", "br0", "up")
        self._spawn("slurmctld", CONTROLLER, "slurmctld", "-D", "-i")
        for node in self.nodes:
            self.start_node(node)
        self.wait_idle()

    def stop(self) -> None:
        """Ends every process; namespaces take their jobs with them."""
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait()

    # --- nodes

    def start_node(self, node: str) -> None:
        """A new or a killed node: namespace, network, slurmd."""
        index = self.nodes.index(node) + 1
        self._start_namespace(node, "--pid", "--fork", "--kill-child", "--mount-proc")
        self.inside(CONTROLLER, "ip", "link", "del", f"v{index}", check=False)
        _run(
            "ip", "link", "add", f"v{index}", "netns", str(self._inits[CONTROLLER]), "type",
            "veth", "peer", "name", "eth0", "netns", str(self._inits[node]),
        )  # fmt: skip
        self.inside(CONTROLLER, "ip", "link", "set", f"v{index}", "master", "br0", "up")
        self.inside(node, "ip", "addr", "add", f"{NET}.{index}/24", "dev", "eth0")
        self.inside(node, "ip", "link", "set", "eth0", "up")
        self._spawn(f"slurmd-{node}", node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """A crash: every process of the node is gone at once, nothing is said to anyone."""
        for name in (node, f"slurmd-{node}"):
            self._processes[name].kill()
            self._processes[name].wait()

    def revive(self) -> None:
        """Starts the nodes that were killed and waits until all are idle."""
        for node in self.nodes:
            if self._processes[node].poll() is not None:
                self.start_node(node)
        self.wait_idle()

    def inside(self, place: str, *command: str, check: bool = True) -> str:
        """Runs a command on a node or the controller, outside of any job; returns its stdout."""
        return _run(*self._enter(place), *command, env=self.environment, check=check)

    # --- SLURM's own commands

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        return {**clean, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def client(self, *command: str, **environment: str) -> str:
        """sbatch, squeue, … from the working directory, where the controller is reached."""
        return _run(*self._enter(CONTROLLER), *command, env={**self.environment, **environment})

    def wait_idle(self, seconds: float = 60) -> None:
        def idle() -> bool:
            states = self.inside(CONTROLLER, "sinfo", "-hN", "-p", "main", "-o", "%t", check=False)
            return states.split() == ["idle"] * len(self.nodes)

        wait_for(idle, seconds, lambda: f"nodes do not come up:\n{self.logs()}")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        found = sorted(self.folder.glob("*.log"))
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in found
        )

    # --- how it is built

    def _configure(self) -> None:
        hosts = [f"{NET}.254 {CONTROLLER}"]
        hosts += [f"{NET}.{index + 1} {node}" for index, node in enumerate(self.nodes)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts]) + "\n")
        devices = []
        for index in range(self.gpus):  # GPUs that only SLURM sees: it wants character devices
            devices.append(self.folder / f"gpu{index}")
            _run("mknod", "-m", "666", str(devices[-1]), "c", "1", "3")
        (self.folder / "gres.conf").write_text(
            "AutoDetect=off\n" + "".join(f"Name=gpu File={device}\n" for device in devices)
        )
        lines = [
            f"NodeName={node} NodeHostname={node} NodeAddr={NET}.{index + 1} CPUs={self.cpus} "
            f"RealMemory=64000 Gres=gpu:{self.gpus} State=UNKNOWN"
            for index, node in enumerate(self.nodes)
        ]
        config = CONFIG.format(
            controller=CONTROLLER, net=NET, folder=self.folder, nodes="\n".join(lines)
        )
        (self.folder / "slurm.conf").write_text(config)

    def _start_munge(self) -> None:
        home = self.folder / "munge"
        key = home / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for path in (home, key):
            shutil.chown(path, "munge", "munge")
        home.chmod(0o755)
        named = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid",
                 "seed-file": "seed"}  # fmt: skip
        self._keep(
            "munged", "setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", *MORTAL,
            "munged", "--foreground", *(f"--{key}={home / name}" for key, name in named.items()),
        )  # fmt: skip
        wait_for((home / "socket").exists, 10, lambda: f"munged: {_tail(home / 'log')}")

    def _start_namespace(self, name: str, *unshare: str) -> None:
        ready = self.folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        process = self._keep(
            name, "unshare", "--net", "--mount", "--uts", "--propagation", "private", *unshare,
            "bash", "-c", INIT, f"init-{name}", name, str(self.folder),
        )  # fmt: skip
        log = self.folder / f"{name}.log"
        wait_for(ready.exists, 10, lambda: f"no namespaces here: {_tail(log)}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        self._inits[name] = int(children.read_text().split()[0]) if unshare else process.pid

    def _enter(self, place: str) -> list[str]:
        spaces = ["--net", "--mount", "--uts", *(["--pid"] if place != CONTROLLER else [])]
        return ["nsenter", "-t", str(self._inits[place]), *spaces, f"--wd={Path.cwd()}", "--"]

    def _spawn(self, name: str, place: str, *command: str) -> None:
        self._keep(name, *self._enter(place), *command)

    def _keep(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Starts a process that ends when this one does, its output appended to a log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*MORTAL, *command], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=self.environment, start_new_session=True, cwd="/",
            )  # fmt: skip
        return self._processes[name]


def wait_for(done: Callable[[], bool], seconds: float, problem: Callable[[], str]) -> None:
    """Polls until ``done``; raises ``Unavailable`` with ``problem`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise Unavailable(problem())
        time.sleep(0.1)


def _run(*command: str, env: dict[str, str] | None = None, check: bool = True) -> str:
    result = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    if check and result.returncode:
        raise Unavailable(f"{' '.join(command)}: {result.stderr.strip() or result.returncode}")
    return result.stdout


def _tail(path: Path, lines: int = 3) -> str:
    return (
        "; ".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
    )
