"""Before an attempt: does every node answer, see its GPUs, the shared folder and the others?

Runs on the first node of a job. What makes it worth its seconds is that it *names* the bad node:
a training job that hangs does not.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from orpo_dist.launch.probe import CANARY, STAGES

# The signal ahead of the time limit goes to every process of a job.
SHIELD = ("bash", "-c", 'trap "" USR1; exec "$@"', "probe")
Groups = list[tuple[str, ...]]


@dataclass
class Report:
    """What one node has said: the checks it passed, and the problem that ended them."""

    passed: list[str] = field(default_factory=list)
    problem: str = ""
    loopback: str = ""  # the address that other nodes cannot reach this one at

    @property
    def fit(self) -> bool:
        return STAGES[-1] in self.passed


Probe = Callable[[Groups], dict[str, Report]]  # groups of nodes, each all-reducing on its own


class BadNodes(Exception):
    """Nodes that are not fit, and why; ``of`` how many nodes, 0 where they are only suspected."""

    def __init__(self, problems: dict[str, str], of: int):
        self.problems = problems
        lines = [f"{node}: {problem}" for node, problem in problems.items()]
        if of == 0:
            last = list(problems)[-1]
            lines.append(f"not all of them are bad: try without one, sbatch --exclude={last} ...")
        elif len(problems) == of > 1:
            lines.append("no node is fit, so the cause is likely in the job or the cluster")
        else:
            lines.append(f"leave out what is bad: sbatch --exclude={','.join(problems)} ...")
        super().__init__("\n".join(lines))


def preflight(nodes: Sequence[str], gpus: int, folder: Path, port: int, seconds: float) -> None:
    """Raise ``BadNodes`` unless all nodes of the job are fit.

    nodes: names, the first being this node. gpus: expected on each; 0 on a CPU job.
    folder: on the shared file system. port: first of three that are free on every node.
    seconds: limit of the whole check of a fit job; naming bad nodes takes up to two more.
    """
    ports = iter(range(port, port + 3))

    def probe(groups: Groups) -> dict[str, Report]:
        chosen = next(ports)
        with ThreadPoolExecutor(max_workers=32) as pool:
            reports = pool.map(lambda g: run_probe(g, gpus, folder, chosen, seconds), groups)
        return {node: report for group in reports for node, report in group.items()}

    blame(list(nodes), probe)


def blame(nodes: list[str], probe: Probe) -> None:
    """Narrow a failure down to nodes in rounds: all together, the silent alone, then pairs."""
    reports = probe([tuple(nodes)])
    if all(report.fit for report in reports.values()):
        return
    silent = [node for node in nodes if not reports[node].passed]
    if silent:  # one dead node keeps a step from starting anywhere: who answers alone?
        reports |= probe([(node,) for node in silent])
    bad = [node for node in nodes if STAGES[2] not in reports[node].passed]
    if bad or len(nodes) == 1:
        raise BadNodes({node: reports[node].problem for node in bad or nodes}, len(nodes))
    if loopback := {node: report.loopback for node, report in reports.items() if report.loopback}:
        text = "all-reduce: its host name is {} to itself: mend /etc/hosts or set {}"
        problems = {n: text.format(a, "GLOO_SOCKET_IFNAME") for n, a in loopback.items()}
        raise BadNodes(problems, len(nodes))
    _blame_pairs(nodes, probe)


def _blame_pairs(nodes: list[str], probe: Probe) -> None:
    """Every node is well on its own: find who cannot talk, with fit ones as partners."""
    first = probe([tuple(nodes[i : i + 2]) for i in range(0, len(nodes) - 1, 2)])
    fit = [node for node, report in first.items() if report.fit]
    suspects = [node for node in nodes if node not in fit]
    if not fit:
        raise BadNodes({node: first[node].problem for node in suspects if node in first}, 0)
    # the suspect comes first and listens, so that one fit node may join several pairs
    second = probe([(node, fit[i % len(fit)]) for i, node in enumerate(suspects)])
    bad = {node: second[node].problem for node in suspects if not second[node].fit}
    if not bad:
        raise BadNodes(dict.fromkeys(nodes, "all-reduce: fails among all, not in pairs"), 0)
    raise BadNodes(bad, len(nodes))


def run_probe(
    group: tuple[str, ...], gpus: int, folder: Path, port: int, seconds: float
) -> dict[str, Report]:
    """One job step of one task a node; a report for every node of the group."""
    token = secrets.token_hex(8)
    own = folder / f"{port}-{group[0]}"
    own.mkdir(parents=True, exist_ok=True)
    (own / CANARY).write_text(token)
    command = [
        "srun", "--overlap", f"--nodes={len(group)}", f"--ntasks={len(group)}",
        "--ntasks-per-node=1", f"--nodelist={','.join(group)}", "--kill-on-bad-exit=0",
        "--input=none", *SHIELD, sys.executable, "-m", "orpo_dist",
        "slurm", "probe", f"--folder={own}", f"--token={token}", f"--gpus={gpus}",
        f"--port={port}", f"--seconds={seconds / 3:g}", *group,
    ]  # fmt: skip
    step = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said, _ = step.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        step.terminate()
        try:
            said, _ = step.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            step.kill()
            said, _ = step.communicate()
    reports = read_reports(group, said)
    for node, report in reports.items():
        if STAGES[2] in report.passed and not _returned(own / node, token):
            report.passed = report.passed[: STAGES.index(STAGES[2])]
            report.problem = f"what it writes to {folder} does not reach the first node"
    return reports


def _returned(path: Path, token: str, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text() == token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def read_reports(group: Sequence[str], said: str) -> dict[str, Report]:
    """From what the probes printed; a node that printed nothing did not answer."""
    reports = {node: Report() for node in group}
    for text in said.splitlines():
        try:
            line = json.loads(text)
            report = reports[line["node"]]
        except (ValueError, KeyError, TypeError):
            continue  # a library's chatter
        if "problem" in line:
            report.problem = f"{line['stage']}: {line['problem']}"
        else:
            report.passed.append(line["stage"])
            report.loopback = line.get("loopback", report.loopback)
    for report in reports.values():
        if not report.passed:
            report.problem = "does not answer, or Python does not start there"
        elif not report.fit and not report.problem:
            report.problem = f"{STAGES[len(report.passed)]}: did not end in time"
    return reports
