"""``orpo-dist slurm``: what the batch scripts call, and where they are."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from orpo_dist.base.exits import EXIT_BAD_NODES, EXIT_GAVE_UP
from orpo_dist.config import ORPOConfig
from orpo_dist.launch.batch import add_write_flags, write

SCRIPTS = {
    "train": Path(__file__).parent / "slurm.sbatch",
    "ray": Path(__file__).parent / "slurm_ray.sbatch",
}
ConfigOf = Callable[[Sequence[str]], ORPOConfig | None]


def add_verbs(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    path = verbs.add_parser(
        "path", help="where the batch script is: sbatch $(orpo-dist slurm path)"
    )
    path.add_argument("script", nargs="?", choices=SCRIPTS, default="train")
    add_write_flags(verbs.add_parser("write", help="a batch script for your site, from flags"))
    begin = verbs.add_parser("begin", help="in a batch script: open an attempt")
    begin.add_argument("line", nargs="+", metavar="-- train ...")
    check = verbs.add_parser("preflight", help="in a batch script: name the nodes that are not fit")
    check.add_argument("--gpus", type=int, default=0, help="that every node must have")
    check.add_argument("--seconds", type=float, default=180.0, help="time limit")
    check.add_argument("nodes", nargs="+", help="host names, this one first")
    probe = verbs.add_parser("probe", help="what preflight runs on every node")
    probe.add_argument("--folder", type=Path, required=True)
    probe.add_argument("--token", required=True)
    probe.add_argument("--gpus", type=int, required=True)
    probe.add_argument("--port", type=int, required=True)
    probe.add_argument("--seconds", type=float, required=True)
    probe.add_argument("nodes", nargs="+", help="host names in the order of their ranks")
    wait = verbs.add_parser("wait-for-ray", help="in a batch script: until all Ray nodes are there")
    wait.add_argument("--nodes", type=int, required=True)
    wait.add_argument("--seconds", type=float, required=True, help="time limit")
    end = verbs.add_parser("end", help="in a batch script: close an attempt; 85 means queue again")
    end.add_argument("--status", type=int, required=True, help="exit code of the attempt")
    end.add_argument("--job", required=True, help="what scontrol show job -o says")
    end.add_argument("line", nargs="+", metavar="-- train ...")


def run_verb(options: argparse.Namespace, config_of: ConfigOf) -> int:
    """Returns the exit code. config_of: from a command line to its config, None if not train."""
    if options.verb == "path":
        print(SCRIPTS[options.script])
        return 0
    if options.verb == "write":
        write(options)
        return 0
    if options.verb == "probe":
        from orpo_dist.launch.probe import probe

        probe(
            options.folder, options.token, options.gpus, options.nodes, options.port,
            options.seconds,
        )  # fmt: skip
        return 0
    if options.verb == "wait-for-ray":
        from orpo_dist.launch.ray_nodes import wait_for_ray

        wait_for_ray(options.nodes, options.seconds)
        return 0
    if options.verb == "preflight":
        return _preflight(options)
    return (_begin if options.verb == "begin" else _end)(options, config_of(options.line))


def _begin(options: argparse.Namespace, config: ORPOConfig | None) -> int:
    from orpo_dist.launch.slurm import GaveUp, Job, begin

    try:
        print(*begin(Job.from_environment(), config))
    except GaveUp as reason:
        _say(f"not started again: {reason}")
        return EXIT_GAVE_UP
    return 0


def _end(options: argparse.Namespace, config: ORPOConfig | None) -> int:
    from orpo_dist.launch.slurm import Job, end, first_errors

    job = Job.from_environment()
    attempt, verdict = end(job, config, options.status, options.job)
    if attempt.crashed and (errors := first_errors(job.attempt)):
        _say(errors)
    _say(f"attempt {job.restarts} of job {job.id}: {verdict.why}")
    return verdict.code


def _preflight(options: argparse.Namespace) -> int:
    from orpo_dist.launch.preflight import BadNodes, preflight
    from orpo_dist.launch.slurm import Job

    job = Job.from_environment()
    # Training itself uses ORPO_PORT: a probe that hangs must not hold it.
    port = int(os.environ["ORPO_PORT"]) + 1
    try:
        preflight(options.nodes, options.gpus, job.attempt / "preflight", port, options.seconds)
    except BadNodes as found:
        _say(f"preflight failed\n{found}")
        return EXIT_BAD_NODES
    _say(f"preflight: fit are {', '.join(options.nodes)}")
    return 0


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
